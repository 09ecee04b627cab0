"""Reads the Azure LLM inference traces: CSV with TIMESTAMP, ContextTokens, GeneratedTokens.

The 2023 files write seven fractional digits and CRLF, and end without a newline; the 2024 files
write six, or no fraction at all when it is zero, and a UTC offset. Times are kept as whole
nanoseconds until the first arrival is subtracted, because a float of the absolute time is exact
only to a quarter of a microsecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from spillway.workload.parsing import (
    BadRow,
    Content,
    Drops,
    Format,
    Lines,
    Reading,
    parse_each,
    token_count,
)
from spillway.workload.row import Row

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
NS_PER_S = 1_000_000_000
STAMP = "TIMESTAMP is not YYYY-MM-DD HH:MM:SS.fffffff"


def _matches(head: Sequence[str]) -> bool:
    return bool(head) and tuple(name.strip() for name in head[0].split(",")) == COLUMNS


def _read(lines: Lines, drops: Drops, reading: Reading) -> Content:
    """The first arrival is at 0 s. About 1.5 µs a row."""
    del reading  # times are exact
    minutes_s: dict[str, int] = {}

    def parse(line: str) -> tuple[int, int, int]:
        fields = line.split(",")
        if len(fields) != len(COLUMNS):
            raise BadRow(f"not {len(COLUMNS)} columns")
        return (
            _stamp_ns(fields[0], minutes_s),
            token_count(fields[1], "ContextTokens"),
            token_count(fields[2], "GeneratedTokens"),
        )

    next(lines)  # the header
    stamped = parse_each(lines, parse, drops)
    stamped.sort(key=lambda row: row[0])
    start_ns = stamped[0][0] if stamped else 0
    rows = [Row((stamp_ns - start_ns) / NS_PER_S, prompt, out) for stamp_ns, prompt, out in stamped]
    return Content(rows, clock_ns=start_ns)


def _stamp_ns(stamp: str, minutes_s: dict[str, int]) -> int:
    """Return `2023-11-16 18:17:03.9799600` in nanoseconds. `minutes_s` caches parsed minutes."""
    stamp = stamp.removesuffix("Z").removesuffix("+00:00")
    minute = stamp[:16]
    minute_s = minutes_s.get(minute)
    if minute_s is None:
        minute_s = minutes_s[minute] = _minute_s(minute)
    second, point, fraction = stamp[17:].partition(".")
    digits = second + fraction
    if (
        stamp[16:17] != ":"
        or len(second) != 2
        or len(fraction) > 9
        or bool(point) != bool(fraction)
        or not (digits.isascii() and digits.isdigit())
    ):
        raise BadRow(STAMP)
    return (minute_s + int(second)) * NS_PER_S + int(fraction.ljust(9, "0"))


def _minute_s(minute: str) -> int:
    try:
        parsed = datetime.strptime(minute.replace("T", " "), "%Y-%m-%d %H:%M")
    except ValueError:
        raise BadRow(STAMP) from None
    return int(parsed.replace(tzinfo=UTC).timestamp())


FORMAT = Format("azure", f"CSV with the header {','.join(COLUMNS)}", _matches, _read)
