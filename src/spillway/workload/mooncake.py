"""Reads the Mooncake traces: JSONL with timestamp (ms), input_length, output_length, hash_ids.

`hash_ids` names each 512-token block of the prompt, the last one perhaps partial; the ids are
chained by position, so leading ids that agree are a shared prefix. A row whose ids do not cover its
prompt in blocks of 512 is dropped, which is how a look-alike with other blocks gives itself away.
Timestamps are rounded down to a tick of 3 s in the published conversation trace: replayed as they
are, they make bursts that never happened, so by default each row is moved by a seeded uniform share
of one tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

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
from spillway.workload.seeds import stream

BLOCK_TOKENS = 512
TICK_S_MAX = 3.1  # the widest published tick is 3.053 s; a wider step is silence, not rounding


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def _matches(head: Sequence[str]) -> bool:
    return any('"input_length"' in line and '"timestamp"' in line for line in head)


def _read(lines: Lines, drops: Drops, reading: Reading) -> Content:
    """About 5 µs a row."""
    decoder = msgspec.json.Decoder(_Line)
    rows = parse_each(lines, lambda line: _row(decode_line(decoder, line)), drops)
    tick_s = _tick_s(rows)
    if not reading.spread_ticks:
        return Content(by_arrival(rows), (f"times are as rounded in the file, to {tick_s:.3f} s",))
    draw = stream(reading.seed, "mooncake.tick").random
    spread = [row._replace(arrival_s=row.arrival_s + tick_s * draw()) for row in rows]
    note = f"rows spread uniformly over their tick of {tick_s:.3f} s (seed {reading.seed})"
    return Content(by_arrival(spread), (note,))


def _row(line: _Line) -> Row:
    prompt_tokens = checked_tokens(line.input_length, "input_length")
    if len(line.hash_ids) != -(-prompt_tokens // BLOCK_TOKENS):
        raise BadRow(f"hash_ids do not cover input_length in blocks of {BLOCK_TOKENS} tokens")
    return Row(
        checked_time(line.timestamp, "timestamp") / 1e3,
        prompt_tokens,
        checked_tokens(line.output_length, "output_length"),
        prefix_blocks=line.hash_ids,
        block_tokens=BLOCK_TOKENS,
    )


def _tick_s(rows: Sequence[Row]) -> float:
    """Return the usual step between distinct times, at most TICK_S_MAX; 0 for a single time.

    The median, because the recorder's own timer shows: a 3 s tick comes as 2.997 to 3.003 s.
    """
    times_s = sorted({row.arrival_s for row in rows})
    steps_s = [later - earlier for earlier, later in pairwise(times_s)]
    return min(median(steps_s), TICK_S_MAX) if steps_s else 0.0


FORMAT = Format(
    "mooncake", "JSONL with timestamp, input_length, output_length, hash_ids", _matches, _read
)
