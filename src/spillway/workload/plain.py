"""Reads our own two formats, for workloads that come from nowhere in particular.

CSV with a header, or JSONL: arrival_s, prompt_tokens, output_tokens, and class_name if wanted. The
columns may stand in any order beside others; there is no quoting. JSONL rows may also carry
prefix_blocks with block_tokens, session_id and think_s (`row.py`). Arrival times stay as they are:
a trace may start with silence. `encode_row` writes a JSONL row.
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
    number,
    parse_each,
    token_count,
)
from spillway.workload.row import Row

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
CLASS_COLUMN = "class_name"


class _Line(msgspec.Struct):
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str = "default"
    prefix_blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    session_id: str = ""
    think_s: float = 0.0


def encode_row(row: Row) -> bytes:
    """Return the row as one JSONL line that this module reads back as it was."""
    usual = Row._field_defaults
    told = {name: value for name, value in row._asdict().items() if value != usual.get(name)}
    return msgspec.json.encode(told) + b"\n"


def _header(line: str) -> list[str]:
    return [name.strip() for name in line.split(",")]


def _csv_matches(head: Sequence[str]) -> bool:
    return bool(head) and set(COLUMNS) <= set(_header(head[0]))


def _jsonl_matches(head: Sequence[str]) -> bool:
    return any(f'"{COLUMNS[0]}"' in line for line in head)


def _read_csv(lines: Lines, drops: Drops, reading: Reading) -> Content:
    del reading  # times are taken as exact
    header = _header(next(lines)[1])
    at_arrival, at_prompt, at_output = (header.index(name) for name in COLUMNS)
    at_class = header.index(CLASS_COLUMN) if CLASS_COLUMN in header else None

    def parse(line: str) -> Row:
        fields = line.split(",")
        if len(fields) != len(header):
            raise BadRow("not as many columns as the header")
        return Row(
            checked_time(number(fields[at_arrival], "arrival_s"), "arrival_s"),
            token_count(fields[at_prompt], "prompt_tokens"),
            token_count(fields[at_output], "output_tokens"),
            (at_class is not None and fields[at_class].strip()) or "default",
        )

    return Content(by_arrival(parse_each(lines, parse, drops)))


def _read_jsonl(lines: Lines, drops: Drops, reading: Reading) -> Content:
    del reading  # times are taken as exact
    decoder = msgspec.json.Decoder(_Line)
    rows = parse_each(lines, lambda line: _row(decode_line(decoder, line)), drops)
    return Content(by_arrival(rows))


def _row(line: _Line) -> Row:
    prompt_tokens = checked_tokens(line.prompt_tokens, "prompt_tokens")
    block_tokens = 0
    if line.prefix_blocks:
        block_tokens = checked_tokens(line.block_tokens, "block_tokens")
        if (len(line.prefix_blocks) - 1) * block_tokens >= prompt_tokens:
            raise BadRow("prefix_blocks reach beyond prompt_tokens")
    return Row(
        checked_time(line.arrival_s, "arrival_s"),
        prompt_tokens,
        checked_tokens(line.output_tokens, "output_tokens"),
        line.class_name or "default",
        line.prefix_blocks,
        block_tokens,
        line.session_id,
        checked_time(line.think_s, "think_s"),
    )


CSV = Format("csv", f"CSV with columns {','.join(COLUMNS)}", _csv_matches, _read_csv)
JSONL = Format("jsonl", f"JSONL with {', '.join(COLUMNS)}", _jsonl_matches, _read_jsonl)
