"""How requests leave a node before their last token: preempted, aborted, or lost in a crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.sim.jumps import ramp_s
from spillway.sim.residents import DECODING, GONE, PREFILLING, QUEUED, Outcome, Preempted, Resident
from spillway.sim.snapshot import segment_progress

if TYPE_CHECKING:
    from spillway.sim.node import SimNode


def make_room(node: SimNode, at_s: float, outcomes: list[Outcome]) -> None:
    """Preempt the latest arrivals until the batch's next tokens fit.

    Each loses its KV and goes back to the head of the prompts, to be computed again with what it
    had generated. O(residents) per preemption.
    """
    while node.kv.free_tokens < node.batch.seqs:
        victim = max(
            (r for r in node.members.values() if r.phase in (DECODING, PREFILLING)),
            key=lambda resident: resident.order,
        )
        if victim.phase is DECODING:
            _leave_batch(node, victim)
            victim.last_token_s = at_s if victim.generated_tokens else None
        else:
            node.prompts.drop(victim)
            node.kv.leave(victim, victim.target_tokens + 1)
        victim.phase = QUEUED
        victim.computed_tokens = 0
        victim.target_tokens = victim.prompt_tokens + victim.generated_tokens
        victim.chunk_steps_done = 0
        victim.preemptions += 1
        node.preemptions += 1
        node.prompts.push(victim, first=True)
        outcomes.append(Preempted(victim, at_s))


def bury(node: SimNode, at_s: float) -> None:
    """Remove what was aborted during the segment that has just ended at `at_s`."""
    for resident in node.doomed:
        if resident.phase is DECODING:
            _leave_batch(node, resident)
            resident.last_token_s = at_s
        elif resident.phase is PREFILLING:
            node.prompts.drop(resident)
            node.kv.leave(resident, resident.target_tokens + 1)
        resident.phase = GONE
    node.doomed.clear()


def lose_all(node: SimNode, now_s: float) -> None:
    """Let every request go as a crash at `now_s` does; tokens of complete steps have been sent."""
    batch, segment = node.batch, node.segment
    done, _ = segment_progress(segment, now_s)
    sent_s = segment.start_s + ramp_s(segment.first_s, segment.slope_s, done)
    if done and batch.seqs:
        batch.run(segment.first_s, segment.slope_s, done)
    for resident in [*node.members.values(), *node.doomed]:
        if resident.phase is DECODING and resident not in batch.fresh:
            batch.remove(resident)
            resident.last_token_s = sent_s
        resident.phase = GONE


def _leave_batch(node: SimNode, resident: Resident) -> None:
    if resident in node.batch.fresh:
        node.batch.fresh.remove(resident)
        node.batch.follow(resident)
    node.batch.remove(resident)
    node.kv.leave(resident, resident.prompt_tokens + resident.generated_tokens)
