"""llm-d: choose the decode node first, then ask whether it lacks enough of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from spillway.core.decide import Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import deflect_or_reject, deflect_unguarded, to_prefill
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class LlmdPrefix:
    """llm-d `prefix-based-pd-decider`: separate only prompts of which the decode node lacks much.

    Rule:    d = argmax over decode nodes of prefix_factor·held share + queue_factor·shortness.
             Use the prefill pool iff prompt >= prompt_tokens_min and
             uncached(d) >= uncached_tokens_min; p by the same score. uncached_tokens_min = 0 never
             uses it.
    Formula: held share = cached / prompt; shortness = (longest - queue) / (longest - shortest),
             1 where all are equal. Queue: prompts waiting on a prefill node, streams and prompts on
             a decode node.
    Inputs:  prefix tokens held per node; prompts and streams per node. No time, no target, and
             nothing of the prefill pool reaches the decision.
    Source:  llm-d-router (`prefix-based-pd-decider`, weighted scorers). Its code defaults to 0;
             published configurations use 16 to 1024 tokens. Weights 2 and 1 are common ones.
    Differs: what nodes hold is known from what was sent to them (`core.prefixes`), as with llm-d's
             approximate producer; a prompt of which nothing is known counts as held nowhere, while
             llm-d does not separate without prefix information. Its queue scorer counts waiting
             requests only, which decode nodes here do not tell apart.

    uncached_tokens_min: tokens lacking on the decode node from which on the prefill pool is used.
    prompt_tokens_min: shorter prompts never use it.
    prefix_factor: weight of the held share.
    queue_factor: weight of the queue.
    """

    uncached_tokens_min: int = 512
    prompt_tokens_min: int = 0
    prefix_factor: float = 2.0
    queue_factor: float = 1.0
    name: str = "llmd-prefix"

    def __post_init__(self) -> None:
        if self.uncached_tokens_min < 0 or self.prompt_tokens_min < 0:
            raise ConfigError("llmd-prefix: the token thresholds must be >= 0")
        for factor in (self.prefix_factor, self.queue_factor):
            if not (isfinite(factor) and factor >= 0):
                raise ConfigError("llmd-prefix: prefix_factor and queue_factor must be >= 0")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = self._best(request, cluster.prefill, lambda node: node.backlog_prompts)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = self._best(request, cluster.decode, _on_decode)
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        if (
            0 < self.uncached_tokens_min <= request.uncached_tokens(decode.spec.node_id)
            and request.prompt_tokens >= self.prompt_tokens_min
        ):
            return remote
        return deflect_unguarded(request, cluster, remote, decode, Reason.SHORT_PROMPT)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = self._best(request, cluster.decode, _on_decode)
        return node.spec.node_id if node else None

    def _best(
        self, request: RequestView, nodes: tuple[NodeView, ...], queue: Callable[[NodeView], int]
    ) -> NodeView | None:
        """Return the usable node with the highest score, the first of equals."""
        usable = [node for node in nodes if node.usable]
        queues = [queue(node) for node in usable]
        longest = max(queues, default=0)
        spread = longest - min(queues, default=0)
        prompt_tokens = max(1, request.prompt_tokens)
        best, best_score = None, -1.0
        for node, length in zip(usable, queues, strict=True):
            held_frac = 1 - request.uncached_tokens(node.spec.node_id) / prompt_tokens
            short_frac = (longest - length) / spread if spread else 1.0
            score = self.prefix_factor * held_frac + self.queue_factor * short_frac
            if score > best_score:
                best, best_score = node, score
        return best


def _on_decode(node: NodeView) -> int:
    return node.decode_seqs + node.backlog_prompts
