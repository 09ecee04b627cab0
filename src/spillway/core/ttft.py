"""Predicted TTFT by each path, in the five parts that a run also measures.

The parts add up to the total, so a wrong prediction can be blamed on queueing, execution, transfer,
admission or the first decode step. Admission counts only what it adds: the prefill path's total is
`max(queue + execute + transfer, admission) + first step`, overlap included.
"""

from __future__ import annotations

from typing import NamedTuple

from spillway.core.chunks import ChunkPlan
from spillway.core.decide import TtftEstimate
from spillway.core.latency import step_s, token_pairs, tokens_s
from spillway.core.types import NodeView, RequestView

# Assumed output length while no completion has been seen.
OUTPUT_TOKENS_DEFAULT = 256


def execute_on_prefill_s(request: RequestView, node: NodeView) -> float:
    """Return the seconds the prompt adds to a prefill node's packed FIFO backlog. Cost O(1)."""
    spec = node.spec
    profile, step_tokens_max = spec.profile, spec.step_tokens_max
    tokens = request.uncached_tokens(spec.node_id)
    # The backlog's own time cancels out of prefill_s(ahead + prompt) - prefill_s(ahead), but for
    # the partial step that the prompt fills up.
    ahead_tokens = node.backlog_tokens
    full_steps, rest_tokens = divmod(ahead_tokens + tokens, step_tokens_max)
    added_s = profile.token_pair_s * token_pairs(tokens, request.prompt_tokens - tokens)
    if rest_tokens:
        added_s += profile.step_base_s + tokens_s(profile, rest_tokens)
    if ahead_tokens > 0:
        ahead_steps, shared_tokens = divmod(ahead_tokens, step_tokens_max)
        full_steps -= ahead_steps
        if shared_tokens:
            added_s -= profile.step_base_s + tokens_s(profile, shared_tokens)
    if full_steps:
        added_s += full_steps * spec.full_step_s
    return added_s


class DecodeSide(NamedTuple):
    """What the decode node adds to a request that comes from a prefill node, seconds.

    kv_wait_s: until it has KV room.  boundary_s: the step under way.  first_step_s: the own step.
    """

    kv_wait_s: float
    boundary_s: float
    first_step_s: float


def decode_side(request: RequestView, decode: NodeView, output_tokens: int) -> DecodeSide:
    """Return the decode node's part of the prefill path; one for all prefill nodes."""
    profile = decode.spec.profile
    seqs, kv_tokens = decode.decode_seqs, decode.kv_used_tokens
    # A pulled request joins at a step boundary, on average half a step away.
    boundary_s = 0.5 * step_s(profile, seqs, kv_tokens) if seqs else 0.0
    first_s = step_s(profile, seqs + 1, kv_tokens + request.prompt_tokens)
    return DecodeSide(_kv_wait_s(request, decode, output_tokens), boundary_s, first_s)


def ttft_via_prefill(
    request: RequestView, prefill: NodeView, decode: NodeView, now_s: float, side: DecodeSide
) -> TtftEstimate:
    """Predict TTFT when the prompt runs on `prefill` and its KV moves to `decode`.

    Formula: max(queue + execute + transfer, KV wait) + step under way + T_d(B + 1, KV + prompt).
    Reads:   backlog and link of `prefill` (report + what was sent since), the batch of `decode`
             through `side` (`decode_side`).
    Cost:    O(log hinges).
    """
    queue_s = prefill.backlog_until_s - now_s
    if queue_s < 0.0:
        queue_s = 0.0
    execute_s = execute_on_prefill_s(request, prefill)
    ready_s = queue_s + execute_s
    transfer_s = _transfer_s(request, prefill, decode, now_s, ready_s)
    kv_wait_s, boundary_s, first_step_s = side
    lacking_s = kv_wait_s - ready_s - transfer_s
    admission_s = boundary_s + lacking_s if lacking_s > 0.0 else boundary_s
    return TtftEstimate(queue_s, execute_s, transfer_s, admission_s, first_step_s)


def ttft_via_decode(
    request: RequestView, decode: NodeView, plan: ChunkPlan, now_s: float
) -> TtftEstimate:
    """Predict TTFT when the prompt runs on `decode`, in place, by `plan`.

    Formula: deflected work ahead + the plan's own time; its last chunk yields the first token, so
    there is neither a transfer nor a further step. Cost O(log hinges).
    """
    queue_s = max(0.0, decode.backlog_until_s - now_s)
    boundary_s = 0.0
    if decode.decode_seqs and queue_s == 0.0:
        boundary_s = 0.5 * step_s(decode.spec.profile, decode.decode_seqs, decode.kv_used_tokens)
    return TtftEstimate(queue_s, plan.execute_s, 0.0, boundary_s, 0.0)


def transfer_bytes(request: RequestView, prefill: NodeView, decode: NodeView) -> int:
    """Return the KV bytes that must move: the tokens that `decode` does not hold already."""
    tokens = request.uncached_tokens(decode.spec.node_id)
    return tokens * prefill.spec.profile.kv_bytes_per_token


def link_s(prefill: NodeView, decode: NodeView, kv_bytes: int) -> float:
    """Return the seconds `kv_bytes` take between two nodes on an idle link: base + bytes / rate."""
    rate = min(prefill.spec.link_bytes_per_s, decode.spec.link_bytes_per_s)
    return max(prefill.spec.link_base_s, decode.spec.link_base_s) + kv_bytes / rate


def _transfer_s(
    request: RequestView, prefill: NodeView, decode: NodeView, now_s: float, ready_in_s: float
) -> float:
    """Return the transfer with the wait for the link, given when the prompt will be prefilled.

    The link is free once it has carried what it holds and what the backlog ahead will put on it:
    on a slow link that, and not the prefill, is the queue.
    """
    token_bytes = prefill.spec.profile.kv_bytes_per_token
    rate = min(prefill.spec.link_bytes_per_s, decode.spec.link_bytes_per_s)
    own_s = link_s(prefill, decode, transfer_bytes(request, prefill, decode))
    free_in_s = prefill.link_until_s - now_s
    if free_in_s < 0.0:
        free_in_s = 0.0
    late_s = free_in_s + prefill.backlog_tokens * token_bytes / rate - ready_in_s
    return own_s + late_s if late_s > 0.0 else own_s


def _kv_wait_s(request: RequestView, decode: NodeView, output_tokens: int) -> float:
    """Return the expected wait for KV room: what is lacking over the rate at which streams free it.

    A stream frees its share kv_used/B every output_tokens·T/B seconds, in the steady state.
    """
    lacking = decode.kv_used_tokens + request.prompt_tokens - decode.kv_capacity_tokens
    frees = decode.decode_seqs and decode.kv_used_tokens  # a report may claim one without the other
    if lacking <= 0 or not decode.kv_capacity_tokens or not frees:
        return 0.0
    now_step_s = step_s(decode.spec.profile, decode.decode_seqs, decode.kv_used_tokens)
    return lacking * output_tokens * now_step_s / decode.kv_used_tokens
