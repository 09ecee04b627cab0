"""The link over which a prefill node's KV leaves: one transfer at a time, first in first out."""

from __future__ import annotations

from spillway.core.types import NodeSpec


class Link:
    """Egress of one prefill node.

    free_s: when what it was given so far has left.  bytes_moved, transfers: totals.
    """

    __slots__ = ("_spec", "bytes_moved", "free_s", "transfers")

    def __init__(self, spec: NodeSpec) -> None:
        self._spec = spec
        self.free_s = 0.0
        self.bytes_moved = 0
        self.transfers = 0

    def send(self, now_s: float, kv_bytes: int, to: NodeSpec) -> float:
        """Queue a transfer and return when it will be complete.

        Formula: max(now, link free) + base + bytes / rate; base and rate of the worse end.
        """
        spec = self._spec
        rate = min(spec.link_bytes_per_s, to.link_bytes_per_s)
        moving_s = max(spec.link_base_s, to.link_base_s) + kv_bytes / rate
        self.free_s = max(now_s, self.free_s) + moving_s
        self.bytes_moved += kv_bytes
        self.transfers += 1
        return self.free_s
