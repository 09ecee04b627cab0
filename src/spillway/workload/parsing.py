"""What every trace format shares: numbered lines, usable counts, and an account of dropped rows.

A format reads either the lines of one file (`Format`) or the members of a folder or an archive
(`Bundle`). Both give `Content` and count in `Drops` what they cannot use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from re import compile as pattern
from typing import NamedTuple, TypeVar

import msgspec

from spillway.core.errors import ConfigError
from spillway.workload.row import Row

TOKENS_MAX = 100_000_000  # a count beyond this is a broken file, not a prompt
EXAMPLES_MAX = 3

_INDEX = pattern(r"\[\d+\]")  # which element is wrong would make every row a reason of its own

Lines = Iterator[tuple[int, str]]
Parsed = TypeVar("Parsed")


class BadRow(ConfigError):
    """A row cannot be used. The text is the reason, one of a few per format."""


class Drops:
    """Counts dropped rows by reason and remembers where the first of each stood."""

    __slots__ = ("counts", "places")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.places: dict[str, list[str]] = {}

    def add(self, reason: str, place: str, rows: int = 1) -> None:
        """Count `rows` rows. place: a line number, counting from 1 as editors do, or a member."""
        self.counts[reason] = self.counts.get(reason, 0) + rows
        examples = self.places.setdefault(reason, [])
        if len(examples) < EXAMPLES_MAX and place not in examples:
            examples.append(place)


class Reading(NamedTuple):
    """How a trace is to be read.

    path: of the file, for formats that need the files beside it.
    seed: of whatever the reader draws.   spread_ticks: spread coarse times over their tick.
    from_s, to_s: the part that is wanted, in the trace's own seconds. A reader may give more; a
        generator gives no more than it must.
    """

    path: Path
    seed: int = 0
    spread_ticks: bool = True
    from_s: float = 0.0
    to_s: float = inf


class Content(NamedTuple):
    """What a reader gives.

    rows: in order of arrival, in the trace's own seconds.
    notes: what was done to them, one sentence each.
    clock_ns: the wall clock at second 0, in nanoseconds since 1970; None when the trace has none.
    from_s: where the rows begin; not 0 where the reader chose a part by itself.
    """

    rows: list[Row]
    notes: tuple[str, ...] = ()
    clock_ns: int | None = None
    from_s: float = 0.0


class Format(NamedTuple):
    """One way to write a trace into one file.

    shape: how a file looks, for messages.
    matches: whether these first lines look like it.
    """

    name: str
    shape: str
    matches: Callable[[Sequence[str]], bool]
    read: Callable[[Lines, Drops, Reading], Content]


class Bundle(NamedTuple):
    """One way to write a trace into many files, in a folder or a .tar archive.

    matches: whether a member of this name and content belongs to it.
    """

    name: str
    shape: str
    matches: Callable[[str, bytes], bool]
    read: Callable[[Mapping[str, bytes], Drops, Reading], Content]


def numbered(lines: Iterable[str]) -> Lines:
    """Yield (line number, stripped line); blank lines are no rows, but count as lines."""
    for number, line in enumerate(lines, start=1):
        stripped = line.strip()
        if stripped:
            yield number, stripped


def parse_each(lines: Lines, parse: Callable[[str], Parsed], drops: Drops) -> list[Parsed]:
    """Return `parse(line)` of every line; a line for which it raises BadRow goes to `drops`."""
    found = []
    for number, line in lines:
        try:
            found.append(parse(line))
        except BadRow as bad:
            drops.add(str(bad), str(number))
    return found


def by_arrival(rows: list[Row]) -> list[Row]:
    """Return the rows in order of arrival; equal times keep the order of the file."""
    return sorted(rows, key=lambda row: row.arrival_s)


def decode_line(decoder: msgspec.json.Decoder[Parsed], line: str | bytes) -> Parsed:
    """Return one JSON text as the decoder's type. Raises BadRow."""
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise BadRow(_INDEX.sub("[...]", str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRow("not valid JSON") from None


def token_count(text: str, field: str) -> int:
    """Return a count of at least 1 token. Raises BadRow, naming `field`."""
    try:
        tokens = int(text)
    except ValueError:
        raise BadRow(f"{field} is not a whole number") from None
    return checked_tokens(tokens, field)


def number(text: str, field: str) -> float:
    """Return a number, be it infinite. Raises BadRow, naming `field`."""
    try:
        return float(text)
    except ValueError:
        raise BadRow(f"{field} is not a number") from None


def checked_tokens(tokens: int, field: str) -> int:
    """Return `tokens` if it is a usable count. Raises BadRow, naming `field`."""
    if 1 <= tokens <= TOKENS_MAX:
        return tokens
    raise BadRow(f"{field} is below 1" if tokens < 1 else f"{field} is above {TOKENS_MAX}")


def checked_time(time_since_start: float, field: str) -> float:
    """Return a time that is finite and not negative. Raises BadRow, naming `field`."""
    if isfinite(time_since_start) and time_since_start >= 0:
        return time_since_start
    raise BadRow(f"{field} is not a finite number >= 0")
