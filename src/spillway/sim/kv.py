"""The KV room of one simulated node, in tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from spillway.core.errors import InvariantViolation

if TYPE_CHECKING:
    from spillway.sim.residents import Resident

UNBOUNDED_TOKENS = 1 << 60  # stands for a capacity that is not known


class KvPool:
    """Counts KV tokens. INV-12: used + free = capacity, and neither is ever negative.

    capacity_tokens: 0 means not known, which is taken as no limit.

    The methods that take a resident are where a node with a prefix cache differs
    (`prefix_cache.PrefixPool`); here nothing is ever shared.
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

    def cached_tokens(self, resident: Resident) -> int:
        """Return the leading prompt tokens whose KV is here already."""
        return 0

    def needed_tokens(self, resident: Resident) -> int:
        """Return the room that all of a resident's tokens so far take up."""
        return resident.target_tokens

    def enter(self, resident: Resident, tokens: int) -> int:
        """Book `tokens` for a resident; return how many it finds here already."""
        self.take(tokens)
        return 0

    def publish(self, resident: Resident) -> None:
        """Let others find the prompt that the resident has computed or received."""

    def leave(self, resident: Resident, tokens: int) -> None:
        """Return the `tokens` of a resident."""
        self.give(tokens)

    def surplus_tokens(self, residents: Iterable[Resident]) -> int:
        """Return how many tokens of the residents are counted once although several hold them."""
        return 0
