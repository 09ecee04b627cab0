"""KV of past prompts that a node keeps for the next one that begins alike.

As in vLLM v1 the cache has no room of its own. Blocks of requests on the node are shared by those
that begin alike and count once; blocks that nobody uses any more stay where they are, count as
free, and are evicted, least recently used first, as soon as their room is wanted. A request's last
block is evicted before its first. Only full blocks of prompts are shared: what an answer adds has
no ids in a workload. The block size is the workload's, usually larger than an engine's.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from spillway.core.errors import InvariantViolation
from spillway.sim.kv import KvPool
from spillway.sim.residents import Resident


class CacheCounts:
    """What the cache of a node did: tokens looked up, tokens found, blocks evicted."""

    __slots__ = ("asked_tokens", "evicted_blocks", "hit_tokens")

    def __init__(self) -> None:
        self.asked_tokens = 0
        self.hit_tokens = 0
        self.evicted_blocks = 0


class PrefixPool(KvPool):
    """A `KvPool` in which prompts share their leading blocks.

    idle_tokens: cached and used by nobody; part of `free_tokens`.
    """

    __slots__ = ("_idle", "_users", "counts", "idle_tokens")

    def __init__(self, capacity_tokens: int, counts: CacheCounts) -> None:
        super().__init__(capacity_tokens)
        self.counts = counts
        self.idle_tokens = 0
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, int] = OrderedDict()  # block to tokens, oldest first

    def take(self, tokens: int) -> None:
        """Book `tokens`; evict what they displace."""
        super().take(tokens)
        while self.idle_tokens > self.free_tokens:
            _, block_tokens = self._idle.popitem(last=False)
            self.idle_tokens -= block_tokens
            self.counts.evicted_blocks += 1

    def cached_tokens(self, resident: Resident) -> int:
        """Return the leading prompt tokens whose KV is here; the last token never counts."""
        blocks = 0
        for block in resident.job.blocks:
            if block not in self._users and block not in self._idle:
                break
            blocks += 1
        return min(blocks * resident.job.block_tokens, resident.prompt_tokens - 1)

    def needed_tokens(self, resident: Resident) -> int:
        """Return the room for all of a resident's tokens so far, less what others hold for it."""
        shared = 0
        for block in resident.job.blocks:
            if block not in self._users:
                break
            shared += 1
        return resident.target_tokens - shared * resident.job.block_tokens

    def enter(self, resident: Resident, tokens: int) -> int:
        """Book `tokens` for a resident, shared blocks once; return its cached tokens."""
        cached_tokens = self.cached_tokens(resident)
        self.counts.asked_tokens += resident.prompt_tokens
        self.counts.hit_tokens += cached_tokens
        shared_tokens = 0
        block_tokens = resident.job.block_tokens
        for block in resident.job.blocks:
            if block in self._users:
                self._users[block] += 1
                shared_tokens += block_tokens
            elif not self._revive(block):
                break
            resident.held_blocks += 1
        self.take(tokens - shared_tokens)
        return cached_tokens

    def publish(self, resident: Resident) -> None:
        """Let others find the blocks that the resident has computed or received.

        Those that another one has published meanwhile are shared, and its own copy is freed.
        """
        job = resident.job
        for block in job.blocks[resident.held_blocks :]:
            if block in self._users:
                self._users[block] += 1
                self.give(job.block_tokens)
            elif not self._revive(block):
                self._users[block] = 1
        resident.held_blocks = len(job.blocks)

    def leave(self, resident: Resident, tokens: int) -> None:
        """Return the `tokens` of a resident; its blocks stay cached while there is room."""
        job, users = resident.job, self._users
        block_tokens = job.block_tokens
        for block in reversed(job.blocks[: resident.held_blocks]):
            left = users[block] - 1
            if left:
                users[block] = left
                tokens -= block_tokens
            else:
                del users[block]
                self._idle[block] = block_tokens
                self.idle_tokens += block_tokens
        resident.held_blocks = 0
        self.give(tokens)

    def surplus_tokens(self, residents: Iterable[Resident]) -> int:
        """Return what residents hold in common, beyond the first of each block; recounts the users.

        Raises InvariantViolation when a block has other users than the residents (INV-12).
        """
        users: Counter[int] = Counter()
        surplus = 0
        for resident in residents:
            for block in resident.job.blocks[: resident.held_blocks]:
                surplus += resident.job.block_tokens if users[block] else 0
                users[block] += 1
        if users != self._users or sum(self._idle.values()) != self.idle_tokens:
            raise InvariantViolation("INV-12: shared blocks are not those of the residents")
        return surplus

    def _revive(self, block: int) -> bool:
        """Use an idle block again; False when it is not cached."""
        block_tokens = self._idle.pop(block, 0)
        if not block_tokens:
            return False
        self.idle_tokens -= block_tokens
        self._users[block] = 1
        return True
