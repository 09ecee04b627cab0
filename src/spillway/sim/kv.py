"""The KV room of one simulated node, in tokens."""

from __future__ import annotations

from spillway.core.errors import InvariantViolation

UNBOUNDED_TOKENS = 1 << 60  # stands for a capacity that is not known


class KvPool:
    """Counts KV tokens. INV-12: used + free = capacity, and neither is ever negative.

    capacity_tokens: 0 means not known, which is taken as no limit.
    """

    __slots__ = ("capacity_tokens", "free_tokens")

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens or UNBOUNDED_TOKENS
        self.free_tokens = self.capacity_tokens

    @property
    def used_tokens(self) -> int:
        return self.capacity_tokens - self.free_tokens

    def take(self, tokens: int) -> None:
        """Book `tokens`. The caller has checked `free_tokens`."""
        self.free_tokens = free_tokens = self.free_tokens - tokens
        if free_tokens < 0:
            raise InvariantViolation(f"INV-12: KV overbooked by {-free_tokens} tokens")

    def give(self, tokens: int) -> None:
        """Return `tokens` to the pool."""
        self.free_tokens = free_tokens = self.free_tokens + tokens
        if free_tokens > self.capacity_tokens:
            extra = free_tokens - self.capacity_tokens
            raise InvariantViolation(f"INV-12: {extra} more KV tokens freed than used")
