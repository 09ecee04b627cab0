"""What every trace format shares: numbered lines, usable counts, and an account of dropped rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
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
    """Counts dropped rows by reason and remembers the first line numbers of each."""

    __slots__ = ("counts", "lines")

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.lines: dict[str, list[int]] = {}

    def add(self, reason: str, line: int) -> None:
        """Count one row. `line` counts from 1, as editors do."""
        self.counts[reason] = self.counts.get(reason, 0) + 1
        examples = self.lines.setdefault(reason, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(line)


class Format(NamedTuple):
    """One way to write a trace.

    shape: how a file looks, for messages.
    matches: whether these first lines look like it.
    read: (lines, drops, seed of the spread within a tick or None) -> rows in order of arrival, and
        notes on what was done to them.
    """

    name: str
    shape: str
    matches: Callable[[Sequence[str]], bool]
    read: Callable[[Lines, Drops, int | None], tuple[list[Row], list[str]]]


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
            drops.add(str(bad), number)
    return found


def by_arrival(rows: list[Row]) -> list[Row]:
    """Return the rows in order of arrival; equal times keep the order of the file."""
    return sorted(rows, key=lambda row: row.arrival_s)


def decode_line(decoder: msgspec.json.Decoder[Parsed], line: str) -> Parsed:
    """Return one JSON line as the decoder's type. Raises BadRow."""
    try:
        return decoder.decode(line)
    except msgspec.ValidationError as error:
        raise BadRow(_INDEX.sub("[...]", str(error))) from None
    except msgspec.DecodeError:
        raise BadRow("not valid JSON") from None


def token_count(text: str, field: str) -> int:
    """Return a count of at least 1 token. Raises BadRow, naming `field`."""
    try:
        tokens = int(text)
    except ValueError:
        raise BadRow(f"{field} is not a whole number") from None
    return checked_tokens(tokens, field)


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
