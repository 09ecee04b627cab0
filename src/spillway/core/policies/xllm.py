"""xLLM-service: lend the idlest decode instance to the prefill pool when that is late."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from spillway.core.decide import Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.placement import deflect_or_reject, deflect_unguarded, to_prefill
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class Xllm:
    """xLLM's SLO-aware policy: deflect a late prompt to the decode node with time to spare.

    Rule:    p = least predicted backlog. d = the first decode node whose step with the new stream
             meets the TBT target, else the one with the shortest; e = the one with the shortest.
             Deflect to e iff backlog(p) > the TTFT target, e is not d, e's step is within
             (n - 1)/n of the TBT target (n decode nodes), and backlog(e) < backlog(p).
    Formula: backlog in predicted seconds, without the prompt itself; step T_d(B + 1, KV + prompt).
    Inputs:  backlog seconds per node; batch and KV of every decode node; the request's targets.
    Source:  xLLM-service, `slo_aware_policy`, whose flags default to 1000 ms and 50 ms.
    Differs: the prompt stays on e to decode there; xLLM moves its KV to d, because one instance
             cannot do both, and for no other reason asks that e is not d. Roles never flip. The
             prompt's own effect on e's streams is modelled by neither.

    target_ttft_s: backlog above which the prefill pool is late; 0 takes the request's own target.
    target_tbt_s: the step time to keep; 0 takes the request's own target.
    apart: e must not be d, as published.
    """

    target_ttft_s: float = 0.0
    target_tbt_s: float = 0.0
    apart: bool = True
    name: str = "xllm"

    def __post_init__(self) -> None:
        for target_s in (self.target_ttft_s, self.target_tbt_s):
            if not (isfinite(target_s) and target_s >= 0):
                raise ConfigError("xllm: target_ttft_s and target_tbt_s must be numbers >= 0")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefills = [node for node in cluster.prefill if node.usable]
        if not prefills:
            return deflect_or_reject(request, cluster)
        decode, idlest, shortest_s = self._decodes(request, cluster)
        if decode is None or idlest is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        now_s = cluster.now_s
        prefill = min(prefills, key=lambda node: _backlog_s(node, now_s))
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        late_s = _backlog_s(prefill, now_s)
        if late_s <= (self.target_ttft_s or request.slo.ttft_s):
            return remote
        decodes = sum(node.usable for node in cluster.decode)
        spare_s = self._target_tbt_s(request) * (decodes - 1) / decodes
        if (
            (self.apart and idlest is decode)
            or shortest_s >= spare_s
            or _backlog_s(idlest, now_s) >= late_s
        ):
            return remote._replace(reason=Reason.NO_SAFE_DECODE_NODE)
        return deflect_unguarded(request, cluster, remote, idlest, Reason.PREFILL_BUSY)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        decode, _, _ = self._decodes(request, cluster)
        return decode.spec.node_id if decode else None

    def _decodes(
        self, request: RequestView, cluster: ClusterView
    ) -> tuple[NodeView | None, NodeView | None, float]:
        """Return (node to decode on, node with the shortest step, that step's seconds)."""
        target_s = self._target_tbt_s(request)
        first: NodeView | None = None
        idlest: NodeView | None = None
        shortest_s = float("inf")
        for node in cluster.decode:
            if not node.usable:
                continue
            kv_tokens = node.kv_used_tokens + request.prompt_tokens
            next_s = step_s(node.spec.profile, node.decode_seqs + 1, kv_tokens)
            if first is None and next_s <= target_s:
                first = node
            if next_s < shortest_s:
                idlest, shortest_s = node, next_s
        return first or idlest, idlest, shortest_s

    def _target_tbt_s(self, request: RequestView) -> float:
        return self.target_tbt_s or request.slo.tbt_s


def _backlog_s(node: NodeView, now_s: float) -> float:
    return max(0.0, node.backlog_until_s - now_s)
