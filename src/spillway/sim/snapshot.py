"""Looking at a node without disturbing it: its report at any moment, and a recount of its KV."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from spillway.core.errors import InvariantViolation
from spillway.core.events import NodeState
from spillway.core.latency import step_s, tokens_s
from spillway.sim.jumps import Segment, ramp_s, steps_done
from spillway.sim.residents import DECODING, HELD, LANDED, PREFILLING, PULLING
from spillway.wire.report import StepTaken

if TYPE_CHECKING:
    from spillway.sim.node import SimNode


def node_state(node: SimNode, now_s: float) -> NodeState:
    """Return the node's own word on itself at `now_s`, closed-form within a segment.

    The prefill work of the step under way counts in proportion to the time it still needs; the KV
    of prompts not yet computed is in `backlog_tokens`, not in `kv_used_tokens`, that of pulls is in
    it once it is booked; a pulled request counts as decoding from its first token on. O(waiting
    requests).
    """
    batch, prompts, segment = node.batch, node.prompts, node.segment
    seqs, step = batch.seqs, batch.step
    backlog_tokens = float(prompts.backlog_tokens)
    backlog_pairs = prompts.backlog_pairs
    kv_used = node.kv.used_tokens
    over_budget = False
    if segment.steps:
        done, under_way_frac = segment_progress(segment, now_s)
        step += done
        kv_used += seqs * done
        for resident, chunk_tokens in prompts.chunks:
            kv_used += chunk_tokens * done
            tokens = chunk_tokens * (done + under_way_frac)
            backlog_tokens -= tokens
            backlog_pairs -= tokens * (resident.computed_tokens + (tokens + 1) / 2)
        if seqs:
            over_budget = _decode_s(node, done) > batch.tbt_s_min
    for resident in prompts.running:
        kv_used -= resident.target_tokens - resident.computed_tokens + 1
    tbt_s_min = batch.tbt_s_min
    if node.arrived or prompts.backlog_tokens:
        tbt_s_min = min(tbt_s_min, _waiting_tbt_s_min(node))
    return NodeState(
        node.node_id,
        now_s,
        step,
        node.dispatch_seen,
        len(prompts.queued) + len(prompts.running),
        round(backlog_tokens) if backlog_tokens > 0 else 0,
        backlog_pairs if backlog_pairs > 0.0 else 0.0,
        seqs - len(batch.fresh),
        kv_used,
        node.spec.kv_capacity_tokens,
        tbt_s_min,
        over_budget,
        prompts.controller.gain_decode,
        prompts.controller.gain_prefill,
        prompts.controller.margin,
    )


def step_taken(node: SimNode) -> StepTaken:
    """Return the one step of the running segment as the node will report it: at its end."""
    batch, prompts, profile = node.batch, node.prompts, node.spec.profile
    prefill_tokens = sum(tokens for _, tokens in prompts.chunks)
    pairs = prompts.pairs if prefill_tokens else 0.0  # left over from the last step with chunks
    return StepTaken(
        step=batch.step + 1,
        decode_seqs=batch.seqs,
        kv_tokens=batch.context_tokens,
        prefill_tokens=prefill_tokens,
        prefill_token_pairs=pairs,
        actual_s=node.segment.first_s,
        predicted_s=profile.step_base_s
        + profile.decode_seq_s * batch.seqs
        + tokens_s(profile, batch.seqs + prefill_tokens)
        + profile.kv_token_s * batch.context_tokens
        + profile.token_pair_s * pairs,
    )


def segment_progress(segment: Segment, now_s: float) -> tuple[int, float]:
    """Return the segment's complete steps and the elapsed share of the one under way."""
    elapsed_s = now_s - segment.start_s
    if not segment.steps or elapsed_s <= 0.0:
        return 0, 0.0
    first_s, slope_s = segment.first_s, segment.slope_s
    if elapsed_s < first_s:
        return 0, elapsed_s / first_s
    done = steps_done(first_s, slope_s, elapsed_s, segment.steps)
    if done == segment.steps:
        return done, 0.0
    under_way_s = elapsed_s - ramp_s(first_s, slope_s, done)
    return done, min(1.0, max(0.0, under_way_s / (first_s + slope_s * done)))


def recount_kv(node: SimNode) -> None:
    """Recount the KV from the residents (INV-12). Raises InvariantViolation. O(residents)."""
    held = 0
    for resident in [*node.members.values(), *node.doomed]:
        phase = resident.phase
        if phase is DECODING:
            held += resident.prompt_tokens + resident.generated_tokens
            if resident not in node.batch.fresh:
                held += node.batch.step - resident.join_step
        elif phase is PREFILLING:
            held += resident.target_tokens + 1
        elif phase in (HELD, PULLING, LANDED):
            held += resident.prompt_tokens
    held -= node.kv.surplus_tokens([*node.members.values(), *node.doomed])
    if held != node.kv.used_tokens:
        raise InvariantViolation(
            f"INV-12 on {node.node_id}: residents hold {held} KV tokens,"
            f" {node.kv.used_tokens} are booked"
        )


def _decode_s(node: SimNode, done: int) -> float:
    """Return the step under way without its chunks: as measured, or else as the profile says."""
    batch, segment = node.batch, node.segment
    if not node.prompts.chunks:
        return segment.first_s + segment.slope_s * done
    return step_s(node.spec.profile, batch.seqs, batch.context_tokens + batch.seqs * done)


def _waiting_tbt_s_min(node: SimNode) -> float:
    prompts = node.prompts
    tbt_s = min((resident.job.slo_tbt_s for resident in node.arrived), default=inf)
    for waiting in (prompts.running, prompts.queued):
        for resident in waiting:
            if resident.local and resident.job.slo_tbt_s < tbt_s:
                tbt_s = resident.job.slo_tbt_s
    return tbt_s
