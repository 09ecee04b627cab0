"""Sangam: overflow to decode workers while every prefill worker is overloaded."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from spillway.core.decide import Candidate, Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    deflect_unguarded,
    deflection_veto,
    least_loaded_decode,
    to_prefill,
)
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class Sangam:
    """Sangam's hybrid overflow: deflect while all prefill nodes, and not the decode node, are full.

    Rule:    a node is overloaded with overload_tokens of outstanding prompt or more, a prefill node
             also without KV room for the prompt. Unless every prefill node is, use the one with the
             fewest outstanding tokens. Else deflect to the decode node with the fewest, if that is
             not overloaded and KV admission passes. Else wait in a central queue, strictly first
             in, first out; one that may not wait (any longer) joins the shortest prefill queue.
    Inputs:  outstanding prompt tokens and KV per node, from the ledger (booked at dispatch, so that
             prompts already on their way to decode keep their room). No time, no target.
    Source:  Sangam (arXiv 2607.04206) and its public code; 16384 tokens is its setting.
    Differs: its workers save up unspent step budget until a whole prompt fits; ours size each step
             on their own.

    overload_tokens: outstanding prompt tokens from which on a node is overloaded.
    hold: the central queue; off lets whom nobody may take join the shortest prefill queue.
    """

    overload_tokens: int = 16_384
    hold: bool = True
    name: str = "sangam"

    def __post_init__(self) -> None:
        if self.overload_tokens < 1:
            raise ConfigError("sangam: overload_tokens must be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        usable = [node for node in cluster.prefill if node.usable]
        if not usable:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        calm = [node for node in usable if not self._overloaded(request, node)]
        prefill = min(calm or usable, key=_outstanding)
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        if calm:
            return remote
        able, vetoed = [], []
        for node in cluster.decode:
            veto = deflection_veto(request, cluster, node)
            if veto is None and node.backlog_tokens >= self.overload_tokens:
                veto = Reason.CAP_VETO
            if veto is None:
                able.append(node)
            else:
                vetoed.append(Candidate(None, node.spec.node_id, None, veto))
        remote = remote._replace(
            reason=Reason.NO_SAFE_DECODE_NODE, candidates=(*remote.candidates, *vetoed)
        )
        if not able:
            may_hold = self.hold and cluster.may_hold
            return Decision(Route.HELD, Reason.WORTH_WAITING) if may_hold else remote
        node = min(able, key=_outstanding)
        return deflect_unguarded(request, cluster, remote, node, Reason.PREFILL_BUSY)

    def hold_key(self, request: RequestView, cluster: ClusterView) -> float:
        return request.arrival_s

    def feed_s(self, node: NodeView) -> float:
        return inf if node.backlog_tokens < self.overload_tokens else -inf

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None

    def _overloaded(self, request: RequestView, node: NodeView) -> bool:
        need = node.kv_used_tokens + request.prompt_tokens
        return node.backlog_tokens >= self.overload_tokens or 0 < node.kv_capacity_tokens < need


def _outstanding(node: NodeView) -> tuple[int, int]:
    return node.backlog_tokens, node.kv_used_tokens
