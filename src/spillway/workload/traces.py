"""Reads request traces of any known format into rows, and cuts them to size.

Nothing vanishes on the way: a row that cannot be used is counted under its reason, with the first
few line numbers, and every change to the times is noted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from math import inf, isfinite
from pathlib import Path

from spillway.core.errors import ConfigError
from spillway.workload import azure, mooncake, plain
from spillway.workload.parsing import Drops, Format, numbered
from spillway.workload.row import Row

FORMATS: Mapping[str, Format] = {
    known.name: known for known in (azure.FORMAT, mooncake.FORMAT, plain.JSONL, plain.CSV)
}
HEAD_LINES = 10  # looked at to tell the format


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A workload that was read from a file.

    rows: in order of arrival.            format_name: a key of FORMATS.
    dropped: unusable rows by reason.     dropped_lines: the first line numbers of each reason.
    notes: what was done to the rows, one sentence each.
    """

    rows: list[Row]
    format_name: str
    dropped: dict[str, int]
    dropped_lines: dict[str, list[int]]
    notes: tuple[str, ...] = ()

    def dropped_text(self) -> str:
        """Return the dropped rows in one line for a person, "" when there is none."""
        return _dropped_text(self.dropped, self.dropped_lines)


def read_trace(
    path: str | Path, format_name: str | None = None, *, spread_ticks: bool = True, seed: int = 0
) -> Trace:
    """Return the trace in `path`; the format is recognised by its first lines unless it is given.

    spread_ticks: spread the rows of a coarse clock over its tick, drawn from `seed`.
    Raises ConfigError, naming the file and the known formats, when the file cannot be opened, is
    of no known format, or has no usable row. Reads 19,000 Azure rows in about 0.05 s.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            lines = numbered(file)
            head = list(islice(lines, HEAD_LINES))
            found = _format_of(path, format_name, [line for _, line in head])
            drops = Drops()
            rows, notes = found.read(chain(head, lines), drops, seed if spread_ticks else None)
    except OSError as error:
        raise ConfigError(f"trace {path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        reasons = _dropped_text(drops.counts, drops.lines) or "it has no rows"
        raise ConfigError(
            f"trace {path}: no usable row as {found.name!r} ({reasons}); {_known_formats()}"
        )
    return Trace(
        rows=rows,
        format_name=found.name,
        dropped=drops.counts,
        dropped_lines=drops.lines,
        notes=tuple(notes),
    )


def _format_of(path: str | Path, format_name: str | None, head: Sequence[str]) -> Format:
    if format_name is None:
        for known in FORMATS.values():
            if known.matches(head):
                return known
        raise ConfigError(f"trace {path}: of no known format; {_known_formats()}")
    if format_name not in FORMATS:
        raise ConfigError(f"trace format {format_name!r} is unknown; {_known_formats()}")
    if not FORMATS[format_name].matches(head):
        raise ConfigError(f"trace {path}: does not look like {format_name!r}; {_known_formats()}")
    return FORMATS[format_name]


def _known_formats() -> str:
    return "formats: " + "; ".join(f"{known.name} ({known.shape})" for known in FORMATS.values())


def _dropped_text(counts: dict[str, int], lines: dict[str, list[int]]) -> str:
    if not counts:
        return ""
    parts = [
        f"{count} × {reason} (line {', '.join(map(str, lines[reason]))}"
        f"{', ...' if count > len(lines[reason]) else ''})"
        for reason, count in counts.items()
    ]
    return f"{sum(counts.values())} rows dropped: {'; '.join(parts)}"


# --- cutting to size -------------------------------------------------------------------------


def window(rows: Sequence[Row], from_s: float = 0.0, to_s: float = inf) -> list[Row]:
    """Return the rows that arrive in [from_s, to_s), with `from_s` as the new 0.

    Raises ConfigError when the window is empty by construction.
    """
    if not from_s < to_s:
        raise ConfigError(f"the window from {from_s} s to {to_s} s is empty; let it end later")
    return [
        row._replace(arrival_s=row.arrival_s - from_s)
        for row in rows
        if from_s <= row.arrival_s < to_s
    ]


def speed_up(rows: Sequence[Row], factor: float) -> list[Row]:
    """Return the rows arriving `factor` times as fast. Raises ConfigError unless it is > 0."""
    if not (isfinite(factor) and factor > 0):
        raise ConfigError(f"a speed-up of {factor} is not possible; give a number above 0")
    return [row._replace(arrival_s=row.arrival_s / factor) for row in rows]


def drop_longer_than(rows: Sequence[Row], context_tokens_max: int) -> tuple[list[Row], int]:
    """Return the rows whose prompt and output fit the model's context, and how many do not."""
    kept = [row for row in rows if row.prompt_tokens + row.output_tokens <= context_tokens_max]
    return kept, len(rows) - len(kept)


def largest_burst(rows: Sequence[Row], window_s: float) -> tuple[float, float]:
    """Return (from_s, to_s) of the window of `window_s` in which most prompt tokens arrive.

    `rows` is in order of arrival; the window starts with an arrival. (0, window_s) without rows.
    Raises ConfigError unless the window is longer than 0. Cost O(rows).
    """
    if not window_s > 0:
        raise ConfigError(f"a window of {window_s} s holds nothing; give a length above 0")
    best_s, best_tokens, held_tokens, end = 0.0, -1, 0, 0
    for row in rows:
        while end < len(rows) and rows[end].arrival_s < row.arrival_s + window_s:
            held_tokens += rows[end].prompt_tokens
            end += 1
        if held_tokens > best_tokens:
            best_s, best_tokens = row.arrival_s, held_tokens
        held_tokens -= row.prompt_tokens
    return best_s, best_s + window_s
