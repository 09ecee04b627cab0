"""Reads the BurstGPT traces: CSV with Timestamp, Request tokens and Response tokens, among others.

Files 1 and 2 have six columns; file 3 puts `Session ID` and `Elapsed time` in second and third
place, so columns are found by name. Times are seconds from a local midnight. A failed request has 0
response tokens: nothing of it can be replayed, so it is dropped and counted. Source:
github.com/HPMLL/BurstGPT, README.
"""

from __future__ import annotations

from collections.abc import Sequence

from spillway.workload.parsing import (
    BadRow,
    Content,
    Drops,
    Format,
    Lines,
    Reading,
    by_arrival,
    checked_time,
    number,
    parse_each,
    token_count,
)
from spillway.workload.row import Row

TIME, PROMPT, OUTPUT = "Timestamp", "Request tokens", "Response tokens"
SESSION = "Session ID"
FAILED = f"{OUTPUT} is 0: the request had failed"


def _header(line: str) -> list[str]:
    return [name.strip() for name in line.split(",")]


def _matches(head: Sequence[str]) -> bool:
    return bool(head) and {TIME, PROMPT, OUTPUT} <= set(_header(head[0]))


def _read(lines: Lines, drops: Drops, reading: Reading) -> Content:
    """The first arrival is at 0 s. About 3 µs a row."""
    del reading  # times are exact
    header = _header(next(lines)[1])
    at_time, at_prompt, at_output = (header.index(name) for name in (TIME, PROMPT, OUTPUT))
    at_session = header.index(SESSION) if SESSION in header else None

    def parse(line: str) -> Row:
        fields = line.split(",")
        if len(fields) != len(header):
            raise BadRow("not as many columns as the header")
        if fields[at_output].strip() == "0":
            raise BadRow(FAILED)
        return Row(
            checked_time(number(fields[at_time], TIME), TIME),
            token_count(fields[at_prompt], PROMPT),
            token_count(fields[at_output], OUTPUT),
            session_id=fields[at_session].strip() if at_session is not None else "",
        )

    rows = by_arrival(parse_each(lines, parse, drops))
    start_s = rows[0].arrival_s if rows else 0.0
    return Content([row._replace(arrival_s=row.arrival_s - start_s) for row in rows])


FORMAT = Format("burstgpt", f"CSV with columns {TIME},{PROMPT},{OUTPUT}", _matches, _read)
