"""No disaggregation: every node prefills in chunks beside the streams it decodes."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from spillway.core.chunks import drain_s
from spillway.core.decide import Decision, Reason, Route, TtftEstimate
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    deflected,
    deflection_veto,
    fixed_plan,
    least_loaded_decode,
    soonest_prefill,
    static_chunk_tokens,
    to_prefill,
)
from spillway.core.policies.places import Place, soonest_place
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class Colocated:
    """No disaggregation: prompt and decode on one node, prefill in fixed chunks beside the batch.

    Rule:    of all nodes, of both pools, the one with the least predicted TTFT; it runs the prompt
             in chunks of chunk_tokens and decodes what follows. No KV ever moves.
    Formula: TTFT = prompts ahead, in steps of such a chunk beside the batch, + the prompt's own
             steps, each T(B, KV, chunk, done).
    Inputs:  batch, KV and prompts ahead on every node.
    Source:  chunked prefill as in Sarathi-Serve (OSDI 2024) and vLLM's default scheduler.
    Differs: the chunk is a schedule sent along with the request, so two short prompts never share a
             step, and a cached prefix earns no credit; stock engines keep their own setting. A
             prompt that no node may take (state not known, no KV room) goes the usual way. Live,
             engines of the prefill pool must accept whole requests (kv_role kv_both).

    chunk_tokens: prefill tokens per step.
    whole_cluster: use the prefill pool's nodes too; off leaves them idle.
    """

    chunk_tokens: int = 512
    whole_cluster: bool = True
    name: str = "colocated"

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise ConfigError("colocated: chunk_tokens must be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        nodes = (*cluster.decode, *cluster.prefill) if self.whole_cluster else cluster.decode
        best, looked_at = soonest_place(nodes, lambda node: self._place(request, cluster, node))
        if best is not None:
            none = Decision(Route.PREFILL, Reason.COLOCATED, candidates=tuple(looked_at))
            return deflected(
                none,
                best.node_id,
                best.estimate,
                best.plan,
                Reason.COLOCATED,
                execute_plan=best.literal,
            )
        prefill = soonest_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_SAFE_DECODE_NODE)
        return remote._replace(candidates=(*remote.candidates, *looked_at))

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None

    def _place(self, request: RequestView, cluster: ClusterView, node: NodeView) -> Place | Reason:
        veto = deflection_veto(request, cluster, node)
        if veto is not None:
            return veto
        plan, literal = fixed_plan(request, node, self.chunk_tokens)
        if plan is None:
            return Reason.TBT_VETO
        queue_s = drain_s(
            node.spec.profile,
            node.decode_seqs,
            node.kv_used_tokens,
            node.backlog_tokens,
            node.backlog_token_pairs,
            inf,
            self.chunk_tokens if literal else static_chunk_tokens(node),
            1,
        )
        estimate = TtftEstimate(queue_s=queue_s, execute_s=plan.execute_s)
        return Place(node.spec.node_id, plan, literal, estimate)
