"""How a row's prompt is named to the prefix caches of a run: by the chain of its full blocks."""

from __future__ import annotations

from typing import NamedTuple

from spillway.core.prefixes import Chain, chain_blocks
from spillway.workload.row import Row

# Smaller blocks are taken together: finer ones cost time per request and tell little more.
BLOCK_TOKENS_MIN = 64


class PromptName(NamedTuple):
    """The chain of a prompt's full leading blocks of `block_tokens` tokens."""

    chain: Chain
    block_tokens: int


NO_NAME = PromptName((), 0)


def blocks_together(block_tokens: int) -> int:
    """Return how many of a workload's blocks make one block of a run."""
    return -(-BLOCK_TOKENS_MIN // block_tokens)


def name_prompt(row: Row) -> PromptName:
    """Return the name of a row that has prefix blocks. Partial blocks are never shared."""
    together = blocks_together(row.block_tokens)
    block_tokens = together * row.block_tokens
    ids = row.prefix_blocks
    full = min(row.prompt_tokens // block_tokens, len(ids) // together)
    blocks = [ids[at : at + together] for at in range(0, full * together, together)]
    return PromptName(chain_blocks(blocks, block_tokens), block_tokens)
