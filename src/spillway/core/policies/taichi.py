"""TaiChi, its prefill half: short prompts to decode-heavy nodes, long ones to prefill-heavy."""

from __future__ import annotations

from dataclasses import dataclass

from spillway.core.decide import Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    deflected,
    deflection_veto,
    fixed_plan,
    least_loaded_decode,
    soonest_prefill,
    to_prefill,
)
from spillway.core.policies.places import Place, soonest_place
from spillway.core.ttft import ttft_via_decode
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class TaichiLite:
    """TaiChi's length-aware prefill: among nodes that meet the TTFT target, by prompt length.

    Rule:    prefill nodes take large chunks, decode nodes chunks of chunk_tokens. Among the nodes
             that are predicted to meet the TTFT target, a prompt of at most short_tokens_max goes
             to a decode node, a longer one to a prefill node; the other kind where its own kind has
             none; the soonest node where nobody meets it.
    Formula: TTFT_pf and TTFT_dec as everywhere here; TTFT_dec with the fixed chunk.
    Inputs:  backlog, batch and KV of every node; the request's TTFT target.
    Source:  TaiChi (arXiv 2508.01989), from its abstract and descriptions of its mechanism; its
             sliders are set per deployment, so both defaults are ours.
    Differs: the other half, streams that move between the two kinds of nodes while they decode, is
             left out; so prefill nodes never decode. A cached prefix earns no credit on a decode
             node, since the schedule is sent along literally; stock nodes keep their own setting.

    short_tokens_max: uncached tokens up to which a prompt prefers a decode node.
    chunk_tokens: prefill tokens per step on decode nodes.
    """

    short_tokens_max: int = 1024
    chunk_tokens: int = 512
    name: str = "taichi-lite"

    def __post_init__(self) -> None:
        if self.short_tokens_max < 0 or self.chunk_tokens < 1:
            raise ConfigError("taichi-lite: short_tokens_max must be >= 0, chunk_tokens >= 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = soonest_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        if remote.route is Route.REJECTED:
            return remote
        local, looked_at = soonest_place(
            cluster.decode, lambda node: self._local(request, cluster, node)
        )
        remote = remote._replace(candidates=(*remote.candidates, *looked_at))
        if local is None:
            return remote._replace(reason=Reason.NO_SAFE_DECODE_NODE)
        reason = self._reason(request, remote.estimate.total_s, local)
        if reason in (Reason.NO_PRESSURE, Reason.FASTER_ON_PREFILL):
            return remote._replace(reason=reason)
        return deflected(
            remote,
            local.node_id,
            local.estimate,
            local.plan,
            reason,
            execute_plan=local.literal,
        )

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None

    def _reason(self, request: RequestView, remote_s: float, local: Place) -> Reason:
        """Return why to deflect; NO_PRESSURE or FASTER_ON_PREFILL when not to."""
        target_s, local_s = request.slo.ttft_s, local.estimate.total_s
        short = request.uncached_tokens(local.node_id) <= self.short_tokens_max
        if local_s <= target_s and short:
            return Reason.SHORT_PROMPT
        if remote_s <= target_s:
            return Reason.NO_PRESSURE
        if local_s <= target_s or local_s < remote_s:
            return Reason.PREFILL_BUSY
        return Reason.FASTER_ON_PREFILL

    def _local(self, request: RequestView, cluster: ClusterView, node: NodeView) -> Place | Reason:
        veto = deflection_veto(request, cluster, node)
        if veto is not None:
            return veto
        plan, literal = fixed_plan(request, node, self.chunk_tokens)
        if plan is None:
            return Reason.TBT_VETO
        estimate = ttft_via_decode(request, node, plan, cluster.now_s)
        return Place(node.spec.node_id, plan, literal, estimate)
