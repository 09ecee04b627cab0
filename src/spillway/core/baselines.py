"""The reference rules: two that never deflect, and the fixed threshold of the field."""

from __future__ import annotations

from dataclasses import dataclass

from spillway.core.decide import Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    deflect_unguarded,
    least_loaded_decode,
    soonest_prefill,
    to_prefill,
)
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Prefill and decode nodes in turn, blind to length and load.

    Rule:    p = prefill[i mod P], d = decode[i mod D], i = requests decided so far. Never deflects.
    Inputs:  the number of decisions before this one.
    Source:  the default of most routers (vLLM's example proxies, production-stack).
    """

    name: str = "round-robin"

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        nodes = [node for node in cluster.prefill if node.usable]
        if not nodes:
            return deflect_or_reject(request, cluster)
        prefill = nodes[cluster.decisions % len(nodes)]
        return to_prefill(request, cluster, prefill, _next_in_turn(cluster), Reason.STATIC)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = _next_in_turn(cluster)
        return node.spec.node_id if node else None


@dataclass(frozen=True, slots=True)
class LeastLoaded:
    """The prefill node that would finish first, the decode node with the shortest next step.

    Rule:    p = argmin of the moment at which the prompt would be done; d = argmin of the step with
             the new stream, nodes with KV room first. Never deflects.
    Formula: predicted seconds (profile, backlog), so that mixed hardware is weighed rightly.
    Inputs:  backlog of every prefill node; batch and KV of every decode node; prefix tokens held.
    Source:  weighted join-the-shortest-queue, the reference arm of every comparison here.
    """

    name: str = "least-loaded"

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = soonest_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, cluster)
        return to_prefill(request, cluster, prefill, decode, Reason.STATIC)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None


@dataclass(frozen=True, slots=True)
class Threshold:
    """Deflect by fixed thresholds, with a KV veto and nothing that knows of token gaps.

    Rule:    nodes as least-loaded. Deflect iff uncached prompt <= prompt_tokens_max, or the chosen
             prefill node's backlog > backlog_tokens_min. With `both`, and.
    Inputs:  as least-loaded, of which backlog and prefix decide.
    Source:  backlog: NVIDIA Dynamo's conditional disaggregation, `prefill_load` (busy when active
             tokens exceed a multiple of max_num_batched_tokens; 4 x 2048 here).
             Length: PPD 512, Dynamo 2048, llm-d 16 to 1024 uncached tokens.

    backlog_tokens_min: backlog above which prompts are deflected; 0 is no such rule.
    prompt_tokens_max: uncached tokens up to which prompts are; 0 is no such rule.
    both: deflect only where both rules say so.
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
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        if not deflect:
            return remote
        reason = Reason.PREFILL_BUSY if busy else Reason.SHORT_PROMPT
        return deflect_unguarded(request, cluster, remote, decode, reason)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None


def _next_in_turn(cluster: ClusterView) -> NodeView | None:
    nodes = [node for node in cluster.decode if node.usable]
    return nodes[cluster.decisions % len(nodes)] if nodes else None
