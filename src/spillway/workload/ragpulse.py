"""Reads the RAGPulse traces: JSONL whose hash_ids are lists of prompt components, by kind.

A prompt is its components one after the other: system prompt, passages, history, web search, user
input. Their lengths stand in five tables beside the trace. A component has any length, but a cache
works in blocks: so the chain is cut into blocks of 16 tokens, and a block's id stands for its place
and for every component up to its last token. Two prompts then share as many blocks as lie wholly
within the components that they have in common from the start; up to 15 tokens before the point
where they part are not shared, which is what an engine with 16-token blocks does. The few tokens of
template between `input_length` and the sum of the components have no known place and are taken to
stand at the end. Source: github.com/flashserve/RAGPulse and arXiv:2511.12979.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from spillway.workload.parsing import (
    BadRow,
    Content,
    Drops,
    Format,
    Lines,
    Reading,
    by_arrival,
    checked_time,
    checked_tokens,
    decode_line,
    number,
    parse_each,
)
from spillway.workload.row import Row

BLOCK_TOKENS = 16
WEEK_S = 604_800.0
BACKWARDS_S = 86_400.0  # a step back of a day or more is the next recording, not disorder
# The order of the prompt: key in hash_ids, its table, its id in that table.
COMPONENTS = (
    ("sys_prompt", "1_sys_prompt.jsonl", "sys_prompt_id"),
    ("passages_ids", "2_passages.jsonl", "passage_id"),
    ("history", "3_history.jsonl", "history_id"),
    ("web_search", "5_web_search.jsonl", "web_search_id"),
    ("user_input", "4_user_input.jsonl", "user_input_id"),
)
TableId = tuple[int, int]  # which table, which id in it


class _HashIds(msgspec.Struct):
    sys_prompt: list[int] = []
    passages_ids: list[int] = []
    history: list[int] = []
    web_search: list[int] = []
    user_input: list[int] = []

    def chain(self) -> list[TableId]:
        return [
            (at, id_) for at, (key, _, _) in enumerate(COMPONENTS) for id_ in getattr(self, key)
        ]


class _Line(msgspec.Struct):
    timestamp: str
    input_length: int
    output_length: int
    hash_ids: _HashIds
    session_id: str = ""


class _Node:
    """A chain of components as one point of a tree: the blocks that end in its last component."""

    __slots__ = ("block_ids", "end_tokens", "next_nodes")

    def __init__(self, end_tokens: int, block_ids: tuple[int, ...]) -> None:
        self.end_tokens = end_tokens
        self.block_ids = block_ids
        self.next_nodes: dict[TableId, _Node] = {}


class _Blocks:
    """Gives every block of every chain its id."""

    def __init__(self, lengths_tokens: Mapping[TableId, int]) -> None:
        self._lengths_tokens = lengths_tokens
        self._root = _Node(0, ())
        self._used = 0

    def of(self, chain: Sequence[TableId], prompt_tokens: int) -> tuple[int, ...]:
        """Return the ids of the whole blocks of the chain. Raises BadRow."""
        node = self._root
        found: list[int] = []
        for component in chain:
            after = node.next_nodes.get(component)
            node = self._append(node, component) if after is None else after
            found += node.block_ids
        if node.end_tokens > prompt_tokens:
            raise BadRow("the components are longer than input_length")
        return tuple(found)

    def _append(self, node: _Node, component: TableId) -> _Node:
        length_tokens = self._lengths_tokens.get(component)
        if length_tokens is None:
            raise BadRow(f"a component has no length in {COMPONENTS[component[0]][1]}")
        end_tokens = node.end_tokens + length_tokens
        blocks = end_tokens // BLOCK_TOKENS - node.end_tokens // BLOCK_TOKENS
        first = self._used
        self._used += blocks
        after = _Node(end_tokens, tuple(range(first, first + blocks)))
        node.next_nodes[component] = after
        return after


def _matches(head: Sequence[str]) -> bool:
    return any('"passages_ids"' in line and '"input_length"' in line for line in head)


def _read(lines: Lines, drops: Drops, reading: Reading) -> Content:
    """The upstream file holds two recordings, each from 0 s: the second is set a week later."""
    lengths_tokens, notes = _tables(reading.path)
    blocks = _Blocks(lengths_tokens) if lengths_tokens else None
    decoder = msgspec.json.Decoder(_Line)
    before_s = offset_s = 0.0

    def parse(line: str) -> Row:
        nonlocal before_s, offset_s
        asked = decode_line(decoder, line)
        at_s = checked_time(number(asked.timestamp, "timestamp"), "timestamp")
        prompt_tokens = checked_tokens(asked.input_length, "input_length")
        output_tokens = checked_tokens(asked.output_length, "output_length")
        ids = blocks.of(asked.hash_ids.chain(), prompt_tokens) if blocks else ()
        if at_s < before_s - BACKWARDS_S:
            offset_s += WEEK_S
        before_s = at_s
        return Row(
            at_s + offset_s,
            prompt_tokens,
            output_tokens,
            prefix_blocks=ids,
            block_tokens=BLOCK_TOKENS if ids else 0,
            session_id=asked.session_id,
        )

    rows = by_arrival(parse_each(lines, parse, drops))
    if offset_s:
        notes += (f"{offset_s / WEEK_S + 1:.0f} recordings, each set a week after the one before",)
    return Content(rows, notes)


def _tables(trace: Path) -> tuple[dict[TableId, int], tuple[str, ...]]:
    """Return the lengths of all components, and what is to be said of them."""
    decoder = msgspec.json.Decoder(dict[str, int])
    lengths_tokens: dict[TableId, int] = {}
    for at, (_, file, id_key) in enumerate(COMPONENTS):
        try:
            lines = (trace.parent / file).read_bytes().splitlines()
        except OSError:
            return {}, (f"no prefix blocks: {file}, the lengths of components, is not beside it",)
        try:
            for line in filter(None, lines):
                entry = decode_line(decoder, line)
                lengths_tokens[at, entry[id_key]] = checked_tokens(entry["token_length"], file)
        except (BadRow, KeyError):
            return {}, (f"no prefix blocks: {file} is no table of {id_key} and token_length",)
    return lengths_tokens, (f"prompt components cut into blocks of {BLOCK_TOKENS} tokens",)


FORMAT = Format(
    "ragpulse", "JSONL with timestamp, hash_ids by component, session_id", _matches, _read
)
