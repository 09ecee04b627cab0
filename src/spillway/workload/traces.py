"""Reads request traces of any known format into rows.

Nothing vanishes on the way: a row that cannot be used is counted under its reason, with where the
first few stood, and every change to the times is noted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from math import inf
from pathlib import Path
from typing import TypeVar

from spillway.core.errors import ConfigError
from spillway.wire.codec import did_you_mean
from spillway.workload import agentic, azure, burstgpt, mooncake, plain, qwen, ragpulse, servegen
from spillway.workload.members import has_members, read_members
from spillway.workload.parsing import Bundle, Content, Drops, Format, Reading, numbered
from spillway.workload.row import Row

# In the order in which they are tried: a more telling mark before a more common one.
FORMATS: Mapping[str, Format] = {
    known.name: known
    for known in (
        azure.FORMAT,
        burstgpt.FORMAT,
        ragpulse.FORMAT,
        qwen.FORMAT,
        mooncake.FORMAT,
        plain.JSONL,
        plain.CSV,
    )
}
BUNDLES: Mapping[str, Bundle] = {known.name: known for known in (servegen.BUNDLE, agentic.BUNDLE)}
Known = TypeVar("Known", Format, Bundle)
HEAD_LINES = 10  # looked at to tell the format


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A workload that was read from a file, a folder or an archive.

    rows: in order of arrival.            format_name: a key of FORMATS or BUNDLES.
    dropped: unusable rows by reason.     dropped_places: line or member of the first of each.
    notes: what was done to the rows, one sentence each.
    clock_ns, from_s: as in `Content`.
    """

    rows: list[Row]
    format_name: str
    dropped: dict[str, int]
    dropped_places: dict[str, list[str]]
    notes: tuple[str, ...] = ()
    clock_ns: int | None = None
    from_s: float = 0.0

    def dropped_text(self) -> str:
        """Return the dropped rows in one line for a person, "" when there is none."""
        return _dropped_text(self.dropped, self.dropped_places)


def read_trace(
    path: str | Path,
    format_name: str | None = None,
    *,
    spread_ticks: bool = True,
    seed: int = 0,
    from_s: float = 0.0,
    to_s: float = inf,
) -> Trace:
    """Return the trace in `path`; the format is recognised by its content unless it is given.

    spread_ticks: spread the rows of a coarse clock over its tick, drawn from `seed`.
    from_s, to_s: the part that will be used; only a format that draws its rows heeds it.
    Raises ConfigError, naming the file and the known formats, when the file cannot be opened, is
    of no known format, or has no usable row. Reads 19,000 Azure rows in about 0.05 s.
    """
    if format_name is not None and format_name not in (*FORMATS, *BUNDLES):
        raise ConfigError(
            f"trace format {format_name!r} is unknown; "
            f"{did_you_mean(format_name, (*FORMATS, *BUNDLES))}; {_known_formats()}"
        )
    drops = Drops()
    reading = Reading(Path(path), seed, spread_ticks, from_s, to_s)
    try:
        found = _read_bundle if has_members(reading.path) else _read_file
        name, content = found(reading, format_name, drops)
    except OSError as error:
        raise ConfigError(f"trace {path}: cannot be read: {error.strerror or error}") from error
    if not content.rows:
        reasons = _dropped_text(drops.counts, drops.places) or "it has no rows"
        raise ConfigError(
            f"trace {path}: no usable row as {name!r} ({reasons}); {_known_formats()}"
        )
    return Trace(
        rows=content.rows,
        format_name=name,
        dropped=drops.counts,
        dropped_places=drops.places,
        notes=content.notes,
        clock_ns=content.clock_ns,
        from_s=content.from_s,
    )


def _read_file(reading: Reading, format_name: str | None, drops: Drops) -> tuple[str, Content]:
    with open(reading.path, encoding="utf-8-sig", errors="replace") as file:
        lines = numbered(file)
        head = list(islice(lines, HEAD_LINES))
        texts = [line for _, line in head]
        known = _only((one for one in FORMATS.values() if one.matches(texts)), reading, format_name)
        return known.name, known.read(chain(head, lines), drops, reading)


def _read_bundle(reading: Reading, format_name: str | None, drops: Drops) -> tuple[str, Content]:
    members = read_members(reading.path)
    fitting = (
        one for one in BUNDLES.values() if any(one.matches(*member) for member in members.items())
    )
    known = _only(fitting, reading, format_name)
    return known.name, known.read(members, drops, reading)


def _only(fitting: Iterable[Known], reading: Reading, format_name: str | None) -> Known:
    """Return the first that fits, or the one that was asked for if it does. Raises ConfigError."""
    for one in fitting:
        if format_name in (None, one.name):
            return one
    like = "of no known format" if format_name is None else f"does not look like {format_name!r}"
    raise ConfigError(f"trace {reading.path}: {like}; {_known_formats()}")


def _known_formats() -> str:
    known = [f"{one.name} ({one.shape})" for one in FORMATS.values()]
    known += [f"{one.name} ({one.shape})" for one in BUNDLES.values()]
    return f"formats: {'; '.join(known)}"


def _dropped_text(counts: dict[str, int], places: dict[str, list[str]]) -> str:
    if not counts:
        return ""
    parts = []
    for reason, count in counts.items():
        shown = places[reason]
        kind = "line " if shown[0].isdigit() else ""
        more = ", ..." if count > len(shown) else ""
        parts.append(f"{count} × {reason} ({kind}{', '.join(shown)}{more})")
    return f"{sum(counts.values())} rows dropped: {'; '.join(parts)}"
