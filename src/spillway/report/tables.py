"""The comparison of policies as one table: a row per run, the best of each column marked.

Columns that are neither good nor bad in themselves (share deflected, KV moved) have no best.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from enum import Enum
from math import isnan, nan
from typing import NamedTuple, TextIO

from spillway.report.grid import Cell, Grid, print_grid
from spillway.wire.results import RunResult

NOTHING = "–"
BYTES_PER_GB = 1e9
LEGEND = """\
late token: its gap to the one before was over target. joint: requests that met
their TTFT target and their gap target (99 % of their gaps, or the mean gap)."""
LEGEND_MARK = "*: the best of its column."


class Best(Enum):
    """Which end of a column is good."""

    LOW = "low"
    HIGH = "high"
    NEITHER = "neither"


class Column(NamedTuple):
    """One figure of a run. `name` and `means`: its definition, for the page and the documents."""

    title: str
    name: str
    value: Callable[[RunResult], float]
    text: Callable[[float], str]
    best: Best
    means: str


def seconds(value_s: float) -> str:
    """Return seconds to the millisecond, as `0.412`: a column of them lines up."""
    return f"{value_s:.3f}"


def milliseconds(value_s: float) -> str:
    """Return seconds in milliseconds, as `54.2`."""
    return f"{value_s * 1e3:.1f}"


def percent(value_frac: float) -> str:
    """Return a share as a percentage without its sign: `0.32`, `54.1`, `99.97`.

    Two places near both ends, and never 0 or 100 for what is not quite that.
    """
    value = value_frac * 100
    if 0 < value < 0.01:
        return "<0.01"
    if 99.99 < value < 100:
        return ">99.99"
    return f"{value:.2f}" if 0 < value < 1 or 99 < value < 100 else f"{value:.1f}"


def gigabytes(value_bytes: float) -> str:
    """Return bytes in GB (10^9), as `3.4` or `1210`."""
    value = value_bytes / BYTES_PER_GB
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def kv_bytes(run: RunResult) -> float:
    """Return nan where prompts ran on prefill nodes and nobody said how much KV that moved.

    A client of a live endpoint cannot know.
    """
    is_untold = not run.kv_bytes_moved and run.deflected_frac < 1.0
    return nan if is_untold else float(run.kv_bytes_moved)


COLUMNS = (
    Column(
        "TTFT\np50 s",
        "TTFT p50",
        lambda run: run.ttft_s.p50,
        seconds,
        Best.LOW,
        "Time to first token: from the arrival of a request to its first output token. "
        "Half of the requests were at most this long.",
    ),
    Column(
        "TTFT\np95 s",
        "TTFT p95",
        lambda run: run.ttft_s.p95,
        seconds,
        Best.LOW,
        "95 % of the requests had their first token by then.",
    ),
    Column(
        "TTFT\np99 s",
        "TTFT p99",
        lambda run: run.ttft_s.p99,
        seconds,
        Best.LOW,
        "99 % of the requests had their first token by then.",
    ),
    Column(
        "token\ngap\np99 ms",
        "token gap p99",
        lambda run: run.tbt_s.p99,
        milliseconds,
        Best.LOW,
        "Time between two tokens of one stream (TBT): 99 % of all gaps of all requests were at "
        "most this long.",
    ),
    Column(
        "late\ntoken\n%",
        "late tokens",
        lambda run: run.late_tokens_frac,
        percent,
        Best.LOW,
        "Share of all gaps that were longer than their request's target.",
    ),
    Column(
        "deflec-\nted\n%",
        "deflected",
        lambda run: run.deflected_frac,
        percent,
        Best.NEITHER,
        "Share of the requests whose prompt ran on a decode node, as chunked prefill beside its "
        "streams.",
    ),
    Column(
        "joint\n(99 %)\n%",
        "joint (99 %)",
        lambda run: run.attainment.joint_99,
        percent,
        Best.HIGH,
        "Joint attainment: share of the requests whose TTFT was within its target and of whose "
        "gaps at least 99 % were. A request that got no token met no target.",
    ),
    Column(
        "joint\n(mean)\n%",
        "joint (mean)",
        lambda run: run.attainment.joint_mean,
        percent,
        Best.HIGH,
        "The same with the mean gap of each request in place of its gaps: the milder, more common "
        "form.",
    ),
    Column(
        "KV\nsent\nGB",
        "KV sent",
        kv_bytes,
        gigabytes,
        Best.NEITHER,
        "KV cache sent from prefill to decode nodes, in GB of 10⁹ bytes. A deflected prompt "
        "moves none; – where only the engines could tell.",
    ),
)


def comparison(runs: Sequence[RunResult]) -> Grid:
    """Return one row per run, in the order given. A run that finished nothing has no figures.

    Figures that read the same share the mark; with one run, or all the same, there is none.
    """
    best = [_best_text(column, runs) for column in COLUMNS]
    rows = []
    for run in runs:
        texts = [_text(column, run) for column in COLUMNS]
        cells = [Cell(text, text == mark) for text, mark in zip(texts, best, strict=True)]
        rows.append((Cell(run.policy), *cells))
    return Grid(("policy", *(column.title for column in COLUMNS)), tuple(rows))


def print_comparison(runs: Sequence[RunResult], stream: TextIO | None = None) -> None:
    """Print the table: with colour to a terminal, as plain text to anything else."""
    stream = stream or sys.stdout
    grid = comparison(runs)
    print_grid(grid, stream)
    print(LEGEND, file=stream)
    if any(cell.marked for row in grid.rows for cell in row):
        print(LEGEND_MARK, file=stream)
    for line in remarks(runs):
        print(line, file=stream)


def remarks(runs: Sequence[RunResult]) -> list[str]:
    """Return a line for each run that did not finish every request: that flatters its figures."""
    lines = []
    for run in runs:
        counts = run.requests
        ends = [
            f"{count:,} {what}"
            for what, count in (
                ("failed", counts.failed),
                ("were rejected", counts.rejected),
                ("were cancelled", counts.cancelled),
            )
            if count
        ]
        if ends:
            lines.append(f"{run.policy}: of {counts.arrived:,} requests {', '.join(ends)}.")
    return lines


def _text(column: Column, run: RunResult) -> str:
    value = column.value(run) if run.requests.finished else nan
    return NOTHING if isnan(value) else column.text(value)


def _best_text(column: Column, runs: Sequence[RunResult]) -> str | None:
    """Return the text of the column's best figure, or None where there is nothing to choose."""
    finished = [run for run in runs if run.requests.finished]
    texts = {column.text(column.value(run)) for run in finished}
    if column.best is Best.NEITHER or len(texts) < 2:
        return None
    pick = min if column.best is Best.LOW else max
    return column.text(pick(column.value(run) for run in finished))
