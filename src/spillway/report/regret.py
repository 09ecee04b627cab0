"""The standings of a sweep as a table, and in words: where each policy loses, and to whom."""

from __future__ import annotations

import sys
from typing import TextIO

import msgspec

from spillway.report.grid import Cell as Text
from spillway.report.grid import Grid, print_grid
from spillway.report.standings import (
    AS_GOOD_FRAC,
    Axes,
    Standing,
    axes_of,
    cells_of,
    mean,
    standings,
)
from spillway.report.tables import NOTHING, percent
from spillway.wire.cells import CellResult
from spillway.wire.sweepfile import Sweep

HEAD = (
    "policy",
    "both\ntargets\nmet %",
    "mean\nregret\npoints",
    "worst\nregret\npoints",
    "as good\nas best\ncells %",
    "p95 TTFT\nof best\nstatic",
    "late\ntokens\n%",
    "deflec-\nted\n%",
)
LEGEND = """\
regret: how much more of the requests met both targets under the best policy of
the cell, in percentage points; worst: in the cell where that is largest."""


def regret_table(ranked: list[Standing], cell_count: int) -> Grid:
    """Return one row per policy, the best of each column marked where there is a best."""
    columns = [
        [points(one.score_frac) for one in ranked],
        [points(one.regret_mean_frac) for one in ranked],
        [points(one.regret_max_frac) for one in ranked],
        [f"{one.as_good_count / cell_count * 100:.0f}" for one in ranked],
        [f"{one.ttft_factor:.2f}" if one.ttft_factor else NOTHING for one in ranked],
        [percent(one.late_frac) for one in ranked],
        [percent(one.deflected_frac) for one in ranked],
    ]
    picks = (max, min, min, max, min, None, None)
    marks = []
    for texts, pick in zip(columns, picks, strict=True):
        known = [text for text in texts if text != NOTHING]
        different = pick is not None and len(set(known)) > 1
        marks.append(pick(known, key=float) if different and pick is not None else None)
    rows = tuple(
        (
            Text(one.policy),
            *(
                Text(texts[at], texts[at] == mark)
                for texts, mark in zip(columns, marks, strict=True)
            ),
        )
        for at, one in enumerate(ranked)
    )
    return Grid(HEAD, rows)


def print_standings(sweep: Sweep, stream: TextIO | None = None) -> None:
    """Print the table of a sweep, the smallest worst-cell regret first."""
    stream = stream or sys.stdout
    cells = cells_of(sweep.cells)
    ranked = standings(cells, axes_of(sweep.cells).policies)
    print_grid(regret_table(ranked, len(cells)), stream)
    print(LEGEND, file=stream)
    print(f"{len(cells)} cells.", file=stream)


def standings_json(sweep: Sweep) -> bytes:
    """Return the standings as JSON: the figures of the table, unrounded, and the worst cells."""
    cells = cells_of(sweep.cells)
    axes = axes_of(sweep.cells)
    told = [
        {
            **one._asdict(),
            "worst": one.worst.name._asdict(),
            "worst_best_policy": one.worst.best(),
        }
        for one in standings(cells, axes.policies)
    ]
    whole = {
        "schema_version": sweep.head.schema_version,
        "spillway_version": sweep.head.spillway_version,
        "digest": sweep.head.digest,
        "matrix": sweep.head.matrix,
        "notes": sweep.head.notes,
        "capacities": sweep.capacities,
        "cells": len(cells),
        "standings": told,
    }
    return msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n"


def where_it_loses(one: Standing, axes: Axes, cell_count: int) -> str:
    """Return one or two sentences on the worst cell of a policy. Nobody is spared."""
    worst = one.worst
    best = worst.best()
    if one.regret_max_frac <= 0:
        return "nowhere: no policy is better in any cell."
    if one.regret_max_frac < AS_GOOD_FRAC:
        return (
            f"never by a point or more: its worst cell is {worst.name.text(axes)}, "
            f"{points(one.regret_max_frac)} points behind {best}."
        )
    own, rival = worst.runs[one.policy], worst.runs[best]
    low_frac, high_frac = worst.regret_range_frac(one.policy)
    seeds = f" ({points(low_frac)} to {points(high_frac)} by seed)" if len(own) > 1 else ""
    losing = cell_count - one.as_good_count
    return (
        f"a point or more behind in {losing} of {cell_count} cells; worst in "
        f"{worst.name.text(axes)}, by {points(one.regret_max_frac)} points{seeds}: "
        f"{points(worst.score_frac(one.policy))} % of the requests met both targets, under {best} "
        f"{points(worst.score_frac(best))} %. {_why(list(own), list(rival), best)}"
    )


def _why(own: list[CellResult], rival: list[CellResult], best: str) -> str:
    """Return which of the two targets was missed, and how much was deflected on either side."""
    ttft = mean(r.ttft_met_frac for r in own), mean(r.ttft_met_frac for r in rival)
    gaps = mean(r.tbt_99_met_frac for r in own), mean(r.tbt_99_met_frac for r in rival)
    lost_ttft, lost_gaps = ttft[1] - ttft[0], gaps[1] - gaps[0]
    deflected = (
        f"it deflected {percent(mean(r.deflected_frac for r in own))} %, "
        f"{best} {percent(mean(r.deflected_frac for r in rival))} %"
    )
    if lost_ttft > 2 * lost_gaps:
        side = f"First tokens came late ({points(ttft[0])} % in time against {points(ttft[1])} %)"
    elif lost_gaps > 2 * lost_ttft:
        side = f"Token gaps were late ({points(gaps[0])} % in time against {points(gaps[1])} %)"
    else:
        side = (
            f"Both were late: first tokens {points(ttft[0])} % in time against "
            f"{points(ttft[1])} %, gaps {points(gaps[0])} % against {points(gaps[1])} %"
        )
    return f"{side}; {deflected}."


def points(value_frac: float) -> str:
    """Return a share in percentage points, to a tenth."""
    return f"{value_frac * 100:.1f}"
