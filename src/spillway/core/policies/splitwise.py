"""Splitwise: prompt, token and mixed machines, with prompts borrowed onto token machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from spillway.core.decide import Candidate, Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    deflect_unguarded,
    deflection_veto,
    to_prefill,
)
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class SplitwiseMixed:
    """Splitwise's mixed pool: overflow to a token machine that prefills already, or make it one.

    Rule:    take the first of these that exists: the prefill node with the fewest pending tokens,
             unless its queue is long; the mixed node with the fewest, unless its queue is long; the
             token node with the least KV in use, which becomes mixed; of all nodes the one with the
             fewest pending tokens. Long: prompts wait, and pending + prompt > pending_tokens_max.
             A decode node is mixed while it holds prompts, and a token node otherwise.
    Formula: decode node after a prefill: least KV in use, token nodes with room before mixed ones.
    Inputs:  pending prompt tokens and KV in use per node. No time, no target.
    Source:  Patel et al., Splitwise (ISCA 2024), the mixed-pool scheduler of its public simulator;
             8192 is the limit of its configuration.
    Differs: a prompt borrowed onto a decode node stays there to decode; Splitwise may ship its KV
             to another. Decode work never moves to the prefill pool, so a prefill node is never
             mixed.

    pending_tokens_max: prompt tokens beyond which a queue is long.
    """

    pending_tokens_max: int = 8192
    name: str = "splitwise-mixed"

    def __post_init__(self) -> None:
        if self.pending_tokens_max < 1:
            raise ConfigError("splitwise-mixed: pending_tokens_max must be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = _fewest_pending(node for node in cluster.prefill if node.usable)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = _least_memory(request, cluster)
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        if not self._is_long(request, prefill):
            return remote
        able: list[NodeView] = []
        vetoed: list[Candidate] = []
        for node in cluster.decode:
            veto = deflection_veto(request, cluster, node)
            if veto is None:
                able.append(node)
            else:
                vetoed.append(Candidate(None, node.spec.node_id, None, veto))
        remote = remote._replace(candidates=(*remote.candidates, *vetoed))
        borrowed = self._borrowed(request, able)
        if borrowed is None:
            return remote._replace(reason=Reason.NO_SAFE_DECODE_NODE)
        if borrowed.backlog_tokens > prefill.backlog_tokens:
            return remote  # everybody's queue is long, and this one the longest
        return deflect_unguarded(request, cluster, remote, borrowed, Reason.PREFILL_BUSY)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = _least_memory(request, cluster)
        return node.spec.node_id if node else None

    def _borrowed(self, request: RequestView, able: list[NodeView]) -> NodeView | None:
        """Return the decode node to prefill on: mixed with a short queue, token, any; or None."""
        mixed = _fewest_pending(node for node in able if node.backlog_prompts)
        if mixed is not None and not self._is_long(request, mixed):
            return mixed
        return _fewest_pending(able)  # a token node has nothing pending, so it comes first

    def _is_long(self, request: RequestView, node: NodeView) -> bool:
        pending = node.backlog_tokens + request.uncached_tokens(node.spec.node_id)
        return node.backlog_prompts > 0 and pending > self.pending_tokens_max


def _fewest_pending(nodes: Iterable[NodeView]) -> NodeView | None:
    return min(nodes, key=lambda node: (node.backlog_tokens, node.kv_used_tokens), default=None)


def _least_memory(request: RequestView, cluster: ClusterView) -> NodeView | None:
    def rank(node: NodeView) -> tuple[bool, bool, int]:
        need = node.kv_used_tokens + request.prompt_tokens
        full = 0 < node.kv_capacity_tokens < need
        return full, node.backlog_prompts > 0, node.kv_used_tokens

    return min((node for node in cluster.decode if node.usable), key=rank, default=None)
