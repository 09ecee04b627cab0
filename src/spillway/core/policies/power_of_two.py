"""Power of two choices: look at a few nodes drawn by lot, and take the least loaded of those."""

from __future__ import annotations

from dataclasses import dataclass, replace
from zlib import crc32

from spillway.core.decide import Decision, Reason
from spillway.core.errors import ConfigError
from spillway.core.placement import (
    deflect_or_reject,
    least_loaded_decode,
    soonest_prefill,
    to_prefill,
)
from spillway.core.types import ClusterView, NodeId, NodeView, RequestId, RequestView

# Constants of the 64-bit mixer by Steele, Lea and Flood (SplitMix, OOPSLA 2014).
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """Two nodes of each pool drawn by lot, and of those the one that is less loaded.

    Rule:    of `choices` usable prefill nodes the one that would finish the prompt first; of
             `choices` usable decode nodes the one with the shortest next step. Never deflects.
    Formula: the lot is a hash of the request id, so that the same request draws the same nodes
             whenever it is asked again, in a simulation as live.
    Inputs:  request id; backlog of the drawn prefill nodes; batch and KV of the drawn decode nodes.
    Source:  Mitzenmacher, The Power of Two Choices in Randomized Load Balancing (2001); a routing
             policy of vLLM's and SGLang's routers.
    Differs: load is compared in predicted seconds, theirs in requests.

    choices: nodes drawn from each pool; 1 is a random choice.
    """

    choices: int = 2
    name: str = "power-of-two"

    def __post_init__(self) -> None:
        if self.choices < 1:
            raise ConfigError("power-of-two: choices must be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        few = self._few(request, cluster)
        prefill = soonest_prefill(request, few)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = least_loaded_decode(request, few)
        return to_prefill(request, cluster, prefill, decode, Reason.STATIC)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, self._few(request, cluster))
        return node.spec.node_id if node else None

    def _few(self, request: RequestView, cluster: ClusterView) -> ClusterView:
        return replace(
            cluster,
            prefill=drawn(request.request_id, cluster.prefill, self.choices),
            decode=drawn(request.request_id, cluster.decode, self.choices),
        )


def drawn(request_id: RequestId, nodes: tuple[NodeView, ...], choices: int) -> tuple[NodeView, ...]:
    """Return `choices` different usable nodes, each as likely as any other, in their own order."""
    usable = [node for node in nodes if node.usable]
    if len(usable) <= choices:
        return tuple(usable)
    seed = crc32(request_id.encode())
    left = list(range(len(usable)))
    chosen = []
    for _ in range(choices):
        seed = (seed + _STEP) & _MASK
        chosen.append(left.pop(_mixed(seed) % len(left)))
    return tuple(usable[at] for at in sorted(chosen))


def _mixed(seed: int) -> int:
    """Return 64 bits of which every one depends on every bit of `seed`."""
    mixed = (seed ^ (seed >> 30)) * _FIRST & _MASK
    mixed = (mixed ^ (mixed >> 27)) * _SECOND & _MASK
    return mixed ^ (mixed >> 31)
