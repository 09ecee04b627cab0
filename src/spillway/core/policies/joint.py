"""Placements as a whole: every (prefill, decode) pair and every deflection, and the soonest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spillway.core.chunks import ChunkPlan
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.placement import (
    deflect_or_reject,
    deflection_veto,
    mark_chosen,
    output_tokens_expected,
    own_plan,
)
from spillway.core.ttft import (
    decode_side,
    execute_on_prefill_s,
    ttft_via_decode,
    ttft_via_prefill,
)
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


class Placement(NamedTuple):
    """One way to serve a request. prefill: None for a deflection, which has a plan."""

    prefill: NodeView | None
    decode: NodeView
    estimate: TtftEstimate
    plan: ChunkPlan | None


def placements(
    request: RequestView, cluster: ClusterView, nodes_max: int
) -> tuple[list[Placement], list[Candidate]]:
    """Return every placement that nothing forbids, pairs first, and the vetoed deflections.

    Beyond `nodes_max` nodes a pool is cut to its most promising ones by a cheap rank: a prefill
    node's finish, a decode node's prompts ahead and next step. Cost O(nodes + nodes_max squared).
    """
    now_s = cluster.now_s
    prefills = _first(
        cluster.prefill,
        nodes_max,
        lambda node: max(node.backlog_until_s, now_s) + execute_on_prefill_s(request, node),
    )
    decodes = _first(cluster.decode, nodes_max, lambda node: _decode_rank_s(request, node, now_s))
    output_tokens = output_tokens_expected(request, cluster)
    found: list[Placement] = []
    for decode in decodes:
        side = decode_side(request, decode, output_tokens)
        for prefill in prefills:
            estimate = ttft_via_prefill(request, prefill, decode, now_s, side)
            found.append(Placement(prefill, decode, estimate, None))
    vetoed: list[Candidate] = []
    for decode in decodes:
        veto = deflection_veto(request, cluster, decode)
        plan = own_plan(request, decode) if veto is None else None
        if plan is None:
            vetoed.append(Candidate(None, decode.spec.node_id, None, veto or Reason.TBT_VETO))
        else:
            estimate = ttft_via_decode(request, decode, plan, now_s)
            found.append(Placement(None, decode, estimate, plan))
    return found, vetoed


def decide_by(
    request: RequestView,
    cluster: ClusterView,
    nodes_max: int,
    cost: Callable[[Placement], float],
    reason_remote: Reason,
) -> Decision:
    """Return the decision for the placement of least cost, the soonest of equals."""
    if not any(node.usable for node in cluster.prefill):
        return deflect_or_reject(request, cluster)
    found, vetoed = placements(request, cluster, nodes_max)
    if not found:
        return Decision(Route.REJECTED, Reason.NO_NODE)
    best = min(found, key=lambda one: (cost(one), one.estimate.total_s))
    candidates = [
        Candidate(
            one.prefill.spec.node_id if one.prefill else None,
            one.decode.spec.node_id,
            one.estimate,
            Reason.SLOWER,
        )
        for one in found
    ]
    prefill_id = best.prefill.spec.node_id if best.prefill else None
    decode_id = best.decode.spec.node_id
    return Decision(
        Route.PREFILL if best.prefill else Route.DEFLECTED,
        reason_remote if best.prefill else Reason.BEST_SCORE,
        prefill_id,
        decode_id,
        best.estimate,
        best.plan,
        candidates=mark_chosen(candidates + vetoed, prefill_id, decode_id),
    )


@dataclass(frozen=True, slots=True)
class LeastTtft:
    """Least TTFT over all placements: whatever is predicted to give the first token soonest.

    Rule:    argmin of predicted TTFT over every (prefill, decode) pair and every deflection. Nobody
             else's tokens count.
    Formula: TTFT_pf = max(queue + execute, KV wait) + transfer + boundaries + first step;
             TTFT_dec = deflected work ahead + the node's own chunk schedule.
    Inputs:  backlog, link, batch and KV of every node; prefix tokens held per node.
    Source:  `least_ttft_joint`, the arm of the INFOCOM 2027 placement study that shows what it
             costs to ignore the residents.

    nodes_max: nodes of each pool that are looked at in full.
    """

    nodes_max: int = 8
    name: str = "least-ttft"

    def __post_init__(self) -> None:
        if self.nodes_max < 1:
            raise ConfigError("least-ttft: nodes_max must be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        return decide_by(
            request,
            cluster,
            self.nodes_max,
            lambda _: 0.0,  # the soonest of equals
            Reason.FASTER_ON_PREFILL,
        )

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        output_tokens = output_tokens_expected(request, cluster)
        node = min(
            (node for node in cluster.decode if node.usable),
            key=lambda node: sum(decode_side(request, node, output_tokens)),
            default=None,
        )
        return node.spec.node_id if node else None


def _first(
    nodes: Sequence[NodeView], nodes_max: int, rank_s: Callable[[NodeView], float]
) -> list[NodeView]:
    """Return the usable nodes, at most `nodes_max`, in their own order."""
    usable = [node for node in nodes if node.usable]
    if len(usable) <= nodes_max:
        return usable
    kept = sorted(range(len(usable)), key=lambda at: rank_s(usable[at]))[:nodes_max]
    return [usable[at] for at in sorted(kept)]


def _decode_rank_s(request: RequestView, node: NodeView, now_s: float) -> float:
    kv_tokens = node.kv_used_tokens + request.prompt_tokens
    next_s = step_s(node.spec.profile, node.decode_seqs + 1, kv_tokens)
    return max(0.0, node.backlog_until_s - now_s) + next_s
