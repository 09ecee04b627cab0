"""Which node holds how much of a prompt, as far as its router can know.

A prompt is named by the chain of its leading blocks: each id stands for one block and everything
before it, so two chains agree exactly as far as their prompts do. Whoever works on a prompt holds
its KV for a while, until that is evicted to make room. The index remembers what was sent where, and
forgets, least recently used first, what the node has no room for. It does not know when a node
evicts earlier, so what has not been used for long counts half.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from math import isfinite

from spillway.core.errors import ConfigError
from spillway.core.types import NodeId

Chain = tuple[int, ...]

# Share of what has not been used for `stale_s` that is believed to be still there.
STALE_FRAC = 0.5
STALE_S = 120.0


def chain_blocks(blocks: Iterable[Hashable], root: Hashable) -> Chain:
    """Return the chain of a prompt's leading blocks: one 64-bit id each. About 0.1 µs a block.

    root: what the prompts must have in common besides their text: block size, model, adapter.
    """
    parent = hash(root)
    chain = []
    for block in blocks:
        parent = hash((parent, block))
        chain.append(parent)
    return tuple(chain)


class PrefixIndex:
    """Leading blocks per node, from what was dispatched; as many as the node has room for.

    blocks_max: room of a node in blocks; what does not fit is forgotten, least recently used first.
    stale_s: blocks that no request has used for longer count STALE_FRAC of their tokens.

    Raises ConfigError unless `stale_s` is positive and finite.
    """

    __slots__ = ("_blocks_max", "_held", "_stale_s")

    def __init__(self, blocks_max: Callable[[NodeId], int], *, stale_s: float = STALE_S) -> None:
        if not (isfinite(stale_s) and stale_s > 0):
            raise ConfigError(f"prefix index: stale_s is {stale_s}; it must be positive and finite")
        self._blocks_max = blocks_max
        self._stale_s = stale_s
        # When each block was last used, per node, least recently used first.
        self._held: dict[NodeId, OrderedDict[int, float]] = {}

    def held(
        self, chain: Chain, block_tokens: float, now_s: float
    ) -> tuple[tuple[NodeId, int], ...]:
        """Return (node id, leading prompt tokens that it holds) for each node that holds any.

        Ordered by node id. Cost O(nodes + blocks found).
        """
        found: list[tuple[NodeId, int]] = []
        fresh_since_s = now_s - self._stale_s
        for node_id, used_s in self._held.items():
            blocks = 0.0
            for block in chain:
                last_s = used_s.get(block)
                if last_s is None:
                    break
                blocks += 1.0 if last_s >= fresh_since_s else STALE_FRAC
            if blocks:
                found.append((node_id, int(blocks * block_tokens)))
        found.sort()
        return tuple(found)

    def note(self, node_id: NodeId, chain: Chain, now_s: float) -> None:
        """The node was given a prompt: it will hold its blocks. Cost O(blocks)."""
        used_s = self._held.get(node_id)
        if used_s is None:
            used_s = self._held[node_id] = OrderedDict()
        # The first block last: a chain is forgotten from its end, as an engine evicts it.
        for block in reversed(chain):
            used_s[block] = now_s
            used_s.move_to_end(block)
        excess = len(used_s) - self._blocks_max(node_id)
        for _ in range(excess):
            used_s.popitem(last=False)

    def forget(self, node_id: NodeId) -> None:
        """The node was lost: if it comes back, it comes back empty."""
        self._held.pop(node_id, None)
