"""One end of the network over which KV moves: first in, first out, each at its own rate.

A transfer takes its turn on the prefill node's link first. When that begins to send, the transfer
joins the queue of the decode node's link, and it is complete when it is through both. Bytes that
wait for the second are on the network: a slow decode node does not hold up what the prefill node
sends to others. `core.ttft` books transfers by the same law.
"""

from __future__ import annotations

from spillway.core.ttft import link_end_s
from spillway.core.types import NodeSpec


class Link:
    """The link of one node.

    free_s: when what it was given so far is through.  bytes_moved, transfers: totals.
    """

    __slots__ = ("_spec", "bytes_moved", "free_s", "transfers")

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self.free_s = 0.0
        self.bytes_moved = 0
        self.transfers = 0

    def take(self, now_s: float, kv_bytes: int, other: NodeSpec) -> tuple[float, float]:
        """Queue a transfer from or to `other`; return when it begins and when it is through."""
        begin_s = self.free_s if self.free_s > now_s else now_s
        self.free_s = end_s = begin_s + link_end_s(self._spec, other, kv_bytes)
        self.bytes_moved += kv_bytes
        self.transfers += 1
        return begin_s, end_s
