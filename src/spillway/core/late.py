"""Early rejection: a request that no path can serve within its TTFT target is better told at once.

It goes by what the policy has estimated for every path that it holds to be safe. A policy that
estimates nothing rejects nobody.
"""

from __future__ import annotations

from math import inf

from spillway.core.decide import Decision, Reason, Route, TtftEstimate
from spillway.core.types import RequestView

FEASIBLE = (Reason.CHOSEN, Reason.SLOWER)


def late_by_s(decision: Decision, request: RequestView, now_s: float) -> float:
    """Return by how much the fastest path misses the request's TTFT target, 0 if it does not.

    Formula: time waited so far + least estimated TTFT - target, in seconds. Also how long it takes,
    if nothing else arrives, until the same request could be served in time. Cost O(candidates).
    """
    fastest = _fastest(decision)
    if fastest is None:
        return 0.0
    return max(0.0, now_s - request.arrival_s + fastest.total_s - request.slo.ttft_s)


def refused(decision: Decision) -> Decision:
    """Return the decision turned into a refusal, with the estimate of the fastest path."""
    return decision._replace(
        estimate=_fastest(decision) or decision.estimate,
        route=Route.REJECTED,
        reason=Reason.TOO_LATE,
        prefill_node_id=None,
        decode_node_id=None,
        plan=None,
        execute_plan=False,
        candidates=tuple(
            one._replace(verdict=Reason.TTFT_VETO) if one.verdict in FEASIBLE else one
            for one in decision.candidates
        ),
    )


def _fastest(decision: Decision) -> TtftEstimate | None:
    """Return the least estimate of the paths that are safe; None if nothing is estimated."""
    paths = [one.estimate for one in decision.candidates if one.verdict in FEASIBLE]
    known = [one for one in (decision.estimate, *paths) if one and 0.0 < one.total_s < inf]
    return min(known, key=lambda one: one.total_s, default=None)
