"""The printed rule with what later work adapted in it: better estimates, the same decision."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from spillway.core.chunks import STEP_TOLERANCE_S, ChunkPlan
from spillway.core.decide import Candidate, Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    budget_s,
    deflect_or_reject,
    deflected,
    deflection_veto,
    least_loaded_decode,
    mark_chosen,
    output_tokens_expected,
    plan_within,
)
from spillway.core.ttft import DecodeSide, decode_side, ttft_via_decode, ttft_via_prefill
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class KairosAdapted:
    """Kairos, adapted: the same test on estimates that know transfer, admission and the prefix.

    Rule:    deflect iff TTFT_dec < alpha·TTFT_pf and TTFT_dec <= the request's TTFT target. A
             decode node is feasible with no deflected prompt pending (`exclusive`), KV admission
             passed, and chunks of any size whose every step stays within
             beta x the strictest resident's TBT target.
    Formula: TTFT_pf = max(queue + execute, KV wait) + transfer + boundaries + first step, with
             the exact queue; TTFT_dec = deflected work ahead + the node's chunk schedule.
    Inputs:  backlog, link, batch and KV of every node; prefix tokens held per node.
    Source:  the adapted variant of Kairos (arXiv 2607.02043) in the INFOCOM 2027 study: alpha 1,
             uncached suffix, beta of 0.25 to 1, tuned 0.5.
    Differs: beta is also capped by the node's own margin, which its engine enforces.

    alpha: how much slower the decode path may be; 1 is strictly faster.
    beta: share of the strictest target that a step may fill.
    exclusive: at most one deflected prompt per decode node.
    """

    alpha: float = 1.0
    beta: float = 0.5
    exclusive: bool = True
    name: str = "kairos-adapted"

    def __post_init__(self) -> None:
        if not (isfinite(self.alpha) and self.alpha >= 1):
            raise ConfigError("kairos-adapted: alpha must be a number >= 1")
        if not (isfinite(self.beta) and self.beta > 0):
            raise ConfigError("kairos-adapted: beta must be a number > 0")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        if not any(node.usable for node in cluster.prefill):
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        side = decode_side(request, decode, output_tokens_expected(request, cluster))
        remote = _soonest_remote(request, cluster, decode, side)
        best: tuple[float, NodeView, ChunkPlan] | None = None
        looked_at: list[Candidate] = []
        for node in cluster.decode:
            plan = self._plan(request, cluster, node)
            if isinstance(plan, Reason):
                looked_at.append(Candidate(None, node.spec.node_id, None, plan))
                continue
            estimate = ttft_via_decode(request, node, plan, cluster.now_s)
            looked_at.append(Candidate(None, node.spec.node_id, estimate, Reason.SLOWER))
            if best is None or estimate.total_s < best[0]:
                best = (estimate.total_s, node, plan)
        remote = remote._replace(candidates=(*remote.candidates, *looked_at))
        if best is None:
            return remote._replace(reason=Reason.NO_SAFE_DECODE_NODE)
        total_s, node, plan = best
        if total_s > request.slo.ttft_s:
            return remote._replace(reason=Reason.TTFT_VETO)
        if total_s >= self.alpha * remote.estimate.total_s:
            return remote._replace(reason=Reason.FASTER_ON_PREFILL)
        estimate = ttft_via_decode(request, node, plan, cluster.now_s)
        return deflected(remote, node.spec.node_id, estimate, plan, Reason.FASTER_ON_DECODE)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None

    def _plan(
        self, request: RequestView, cluster: ClusterView, node: NodeView
    ) -> ChunkPlan | Reason:
        veto = deflection_veto(request, cluster, node)
        if veto is not None:
            return veto
        if self.exclusive and node.backlog_prompts:
            return Reason.CAP_VETO
        # An empty node protects the arriving class; the engine's own margin holds in any case.
        target_s = node.tbt_s_min if node.tbt_s_min < inf else request.slo.tbt_s
        limit_s = min(self.beta * target_s, budget_s(node))
        plan = plan_within(request, node, limit_s)
        if plan is None or plan.step_s_max > limit_s + STEP_TOLERANCE_S:
            return Reason.TBT_VETO
        return plan


def _soonest_remote(
    request: RequestView, cluster: ClusterView, decode: NodeView, side: DecodeSide
) -> Decision:
    """Return the decision for the soonest usable prefill node; there is one."""
    best: Decision | None = None
    best_s = inf
    candidates: list[Candidate] = []
    decode_id = decode.spec.node_id
    for node in cluster.prefill:
        if not node.usable:
            continue
        prefill_id = node.spec.node_id
        estimate = ttft_via_prefill(request, node, decode, cluster.now_s, side)
        candidates.append(Candidate(prefill_id, decode_id, estimate, Reason.SLOWER))
        if best is None or estimate.total_s < best_s:
            best_s = estimate.total_s
            best = Decision(
                Route.PREFILL, Reason.FASTER_ON_PREFILL, prefill_id, decode_id, estimate
            )
    assert best is not None
    marked = mark_chosen(candidates, best.prefill_node_id, decode_id)
    return best._replace(candidates=marked)
