"""Reads the Qwen-Bailian traces: JSONL with chat_id, parent_chat_id, hash_ids of 16-token blocks.

A follow-up names the request it continues in `parent_chat_id` (-1 for none); a session is a tree
of follow-ups and is named after its root. The last block of a prompt may be listed though it is
partial. Source: github.com/alibaba-edu/qwen-bailian-usagetraces-anon, README.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    parse_each,
)
from spillway.workload.row import Row

BLOCK_TOKENS = 16
ROOT = -1


class _Line(msgspec.Struct):
    chat_id: int
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]
    parent_chat_id: int = ROOT


def _matches(head: Sequence[str]) -> bool:
    return any('"chat_id"' in line and '"hash_ids"' in line for line in head)


def _read(lines: Lines, drops: Drops, reading: Reading) -> Content:
    """A follow-up whose parent is not in the file starts a session of its own."""
    del reading  # times are exact
    decoder = msgspec.json.Decoder(_Line)
    session_ids: dict[int, str] = {}

    def parse(line: str) -> Row:
        asked = decode_line(decoder, line)
        session_id = session_ids.get(asked.parent_chat_id, str(asked.chat_id))
        session_ids[asked.chat_id] = session_id
        return _row(asked, session_id)

    return Content(by_arrival(parse_each(lines, parse, drops)))


def _row(line: _Line, session_id: str) -> Row:
    prompt_tokens = checked_tokens(line.input_length, "input_length")
    blocks = len(line.hash_ids)
    if blocks not in (prompt_tokens // BLOCK_TOKENS, -(-prompt_tokens // BLOCK_TOKENS)):
        raise BadRow(f"hash_ids do not cover input_length in blocks of {BLOCK_TOKENS} tokens")
    return Row(
        checked_time(line.timestamp, "timestamp"),
        prompt_tokens,
        checked_tokens(line.output_length, "output_length"),
        prefix_blocks=line.hash_ids,
        block_tokens=BLOCK_TOKENS,
        session_id=session_id,
    )


FORMAT = Format(
    "qwen-bailian", "JSONL with chat_id, parent_chat_id, timestamp, hash_ids", _matches, _read
)
