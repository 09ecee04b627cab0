"""The reference rules: two that never deflect, and the fixed threshold of the field."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from spillway.core.decide import Candidate, Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    kv_veto,
    least_loaded_decode,
    output_tokens_expected,
    plan_within,
    safe_plan,
    soonest_prefill,
    state_veto,
)
from spillway.core.ttft import decode_side, ttft_via_decode, ttft_via_prefill
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Prefill and decode nodes in turn, blind to length and load.

    Rule:   p = prefill[i mod P], d = decode[i mod D], i = requests decided so far.
    Source: the default of most routers (vLLM's example proxies, production-stack).
    """

    name: str = "round-robin"

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        nodes = [node for node in cluster.prefill if node.usable]
        if not nodes:
            return deflect_or_reject(request, cluster)
        prefill = nodes[cluster.decisions % len(nodes)]
        return _to_prefill(request, cluster, prefill, _next_in_turn(cluster), Reason.STATIC)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = _next_in_turn(cluster)
        return node.spec.node_id if node else None


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The prefill node that would finish first, the decode node with the shortest next step.

    Rule:   argmin of predicted seconds (profile, backlog), so mixed hardware is weighed rightly.
    Source: weighted join-the-shortest-queue, the reference arm of every comparison here.
    """

    name: str = "least-loaded"

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = soonest_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        return _to_prefill(request, cluster, prefill, decode, Reason.STATIC)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None


@dataclass(frozen=True, slots=True)
class Threshold:
    """Deflect by fixed thresholds, with a KV veto and nothing that knows of token gaps.

    Rule:   deflect iff uncached prompt <= prompt_tokens_max (0: no length rule), or the chosen
            prefill node's backlog > backlog_tokens_min (0: no backlog rule). With `both`, and.
    Source: backlog: NVIDIA Dynamo's conditional disaggregation, `prefill_load` (busy when active
            tokens exceed a multiple of max_num_batched_tokens; 4 x 2048 here).
            Length: PPD 512, Dynamo 2048, llm-d 16 to 1024 uncached tokens.
    """

    backlog_tokens_min: int = 8192
    prompt_tokens_max: int = 0
    both: bool = False
    name: str = "threshold"

    def __post_init__(self) -> None:
        if self.backlog_tokens_min < 0 or self.prompt_tokens_max < 0:
            raise ConfigError("threshold: backlog_tokens_min and prompt_tokens_max must be >= 0")
        if not self.backlog_tokens_min and not self.prompt_tokens_max:
            raise ConfigError("threshold: set backlog_tokens_min or prompt_tokens_max above 0")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = soonest_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        busy = 0 < self.backlog_tokens_min < prefill.backlog_tokens
        short = request.uncached_tokens(decode.spec.node_id) <= self.prompt_tokens_max
        deflect = (busy and short) if self.both else (busy or short)
        if not deflect:
            return _to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        reason = Reason.PREFILL_BUSY if busy else Reason.SHORT_PROMPT
        return _deflect_unguarded(request, cluster, prefill, decode, reason)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None


def _next_in_turn(cluster: ClusterView) -> NodeView | None:
    nodes = [node for node in cluster.decode if node.usable]
    return nodes[cluster.decisions % len(nodes)] if nodes else None


def _to_prefill(
    request: RequestView,
    cluster: ClusterView,
    prefill: NodeView,
    decode: NodeView | None,
    reason: Reason,
) -> Decision:
    """Return the decision for the prefill path, with its estimate."""
    if decode is None:
        return Decision(Route.REJECTED, Reason.NO_NODE)
    side = decode_side(request, decode, output_tokens_expected(request, cluster))
    estimate = ttft_via_prefill(request, prefill, decode, cluster.now_s, side)
    prefill_id, decode_id = prefill.spec.node_id, decode.spec.node_id
    chosen = Candidate(prefill_id, decode_id, estimate, Reason.CHOSEN)
    return Decision(Route.PREFILL, reason, prefill_id, decode_id, estimate, candidates=(chosen,))


def _deflect_unguarded(
    request: RequestView,
    cluster: ClusterView,
    prefill: NodeView,
    decode: NodeView,
    reason: Reason,
) -> Decision:
    """Return a deflection that no step-time model has checked, unless state or KV forbid it.

    The plan serves the estimate alone; an engine that sizes its steps protects itself anyway.
    """
    remote = _to_prefill(request, cluster, prefill, decode, Reason.NO_SAFE_DECODE_NODE)
    decode_id = decode.spec.node_id
    veto = state_veto(decode, cluster)
    if veto is None and kv_veto(request, decode, output_tokens_expected(request, cluster)):
        veto = Reason.KV_VETO
    plan = None
    if veto is None:
        plan = safe_plan(request, decode) or plan_within(request, decode, inf)
    if plan is None:  # vetoed, or cut so small that the schedule is out of bounds
        vetoed = Candidate(None, decode_id, None, veto or Reason.TBT_VETO)
        return remote._replace(candidates=(*remote.candidates, vetoed))
    estimate = ttft_via_decode(request, decode, plan, cluster.now_s)
    local = Candidate(None, decode_id, estimate, Reason.CHOSEN)
    lost = remote.candidates[0]._replace(verdict=Reason.SLOWER)
    return Decision(
        Route.DEFLECTED, reason, None, decode_id, estimate, plan, candidates=(lost, local)
    )
