"""Which of many decisions shows best what deflection is: the one predicted to save most time."""

from __future__ import annotations

from collections.abc import Iterable

from spillway.wire.decisions import DecisionRecord


def best_example(records: Iterable[DecisionRecord]) -> DecisionRecord | None:
    """Return the deflection with the largest predicted saving, or None if there is none.

    A prompt that takes several steps is preferred: it shows a chunk plan at work.
    """
    deflected = [record for record in records if record.decision.route == "deflected"]
    return max(deflected, key=lambda record: (_takes_steps(record), saved_s(record)), default=None)


def _takes_steps(record: DecisionRecord) -> bool:
    plan = record.decision.plan
    return plan is not None and sum(steps for _, steps in plan.chunks) > 1


def saved_s(record: DecisionRecord) -> float:
    """Return by how much the best prefill path was predicted to be slower, in seconds."""
    decision = record.decision
    remotes_s = [
        candidate.estimate.total_s
        for candidate in decision.candidates
        if candidate.prefill_node_id is not None and candidate.estimate is not None
    ]
    if not remotes_s or decision.estimate is None:
        return 0.0
    return min(remotes_s) - decision.estimate.total_s
