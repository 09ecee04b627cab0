"""Remembers which node was sent which prompt, so that policies know who holds its beginning.

Prompts are never tokenised for that. The JSON of a prompt, be it text, messages or token ids, is
cut into blocks of equal size in bytes: what begins with the same bytes begins with the same tokens.
The engines must keep the KV of past prompts (vLLM's prefix caching), or the estimates come out too
low; so this is off unless the operator asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from spillway.core.ledger import NodeLedger
from spillway.core.prefixes import Chain, PrefixIndex, chain_blocks
from spillway.core.types import NodeId
from spillway.wire.openai import ParsedBody

BLOCK_BYTES = 1024
# What a block is taken to be when room for tokens is turned into room for blocks: English text.
BLOCK_TOKENS = 256
BLOCKS_PER_NODE_MAX = 1 << 16
# Fields that change the KV of the same prompt, or keep it from being shared.
ROOT_FIELDS = ("tools", "cache_salt", "chat_template", "add_special_tokens")


class PromptMemory:
    """The prompts that each node was sent lately, by the chain of their leading blocks.

    nodes: the ledger's; a node's KV room bounds what is remembered of it.
    blocks_max: leading blocks of a prompt that are looked at; bounds the cost of a request to about
        half a microsecond a block.
    """

    def __init__(self, nodes: Mapping[NodeId, NodeLedger], blocks_max: int) -> None:
        self._nodes = nodes
        self._index = PrefixIndex(self._room)
        self._bytes_max = blocks_max * BLOCK_BYTES

    def recall(
        self, parsed: ParsedBody, prompt_tokens: int, prompt_bytes: int, now_s: float
    ) -> tuple[Chain, tuple[tuple[NodeId, int], ...]]:
        """Return the chain of a prompt, and (node id, leading tokens that it is likely to hold).

        prompt_tokens, prompt_bytes: as `PromptRuler.measure` returns them. Token ids are counted;
        of text, bytes count as tokens in the proportion of the whole prompt.
        """
        prompt, fields = parsed.prompt, parsed.fields
        end = min(len(prompt), self._bytes_max) // BLOCK_BYTES * BLOCK_BYTES
        if not end:
            return (), ()
        root = [parsed.model, parsed.is_chat]
        root += [bytes(fields[name]) for name in ROOT_FIELDS if name in fields]
        blocks = (prompt[at : at + BLOCK_BYTES] for at in range(0, end, BLOCK_BYTES))
        chain = chain_blocks(blocks, tuple(root))
        if prompt_bytes:
            block_tokens = prompt_tokens * BLOCK_BYTES / prompt_bytes
            return chain, self._index.held(chain, block_tokens, now_s)
        held_bytes = self._index.held(chain, BLOCK_BYTES, now_s)
        return chain, tuple((node_id, prompt.count(b",", 0, size)) for node_id, size in held_bytes)

    def sent(self, node_id: NodeId, chain: Chain, now_s: float) -> None:
        """A node was sent the prompt, or is to pull its KV."""
        self._index.note(node_id, chain, now_s)

    def _room(self, node_id: NodeId) -> int:
        node = self._nodes.get(node_id)
        room = node.view.kv_capacity_tokens // BLOCK_TOKENS if node is not None else 0
        return min(room or BLOCKS_PER_NODE_MAX, BLOCKS_PER_NODE_MAX)

    def lost(self, node_id: NodeId) -> None:
        """A node was lost: what it held is gone."""
        self._index.forget(node_id)
