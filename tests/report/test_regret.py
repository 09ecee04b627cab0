"""The standings as a table and in words."""

from __future__ import annotations

import json
from io import StringIO

from spillway.report.regret import print_standings, standings_json, where_it_loses
from spillway.report.standings import axes_of, cells_of, standings
from sweep_samples import cell, contest, sweep

SWEEP = contest()
CELLS = cells_of(SWEEP.cells)
AXES = axes_of(SWEEP.cells)


def said(policy: str) -> str:
    (one,) = [one for one in standings(CELLS, AXES.policies) if one.policy == policy]
    return where_it_loses(one, AXES, len(CELLS))


def test_the_table_ranks_by_the_worst_cell_and_marks_the_best() -> None:
    out = StringIO()
    print_standings(SWEEP, out)
    lines = out.getvalue().splitlines()
    first = next(line for line in lines if line.startswith("headroom"))
    assert first.split()[1:4] == ["92.5*", "1.5*", "3.0*"]
    assert lines.index(first) < next(
        at for at, line in enumerate(lines) if line.startswith("least-loaded")
    )
    assert "2 cells." in lines


def test_every_policy_hears_where_it_loses_and_to_whom() -> None:
    assert "burst, load 0.6, by 3.0 points (2.0 to 4.0 by seed)" in said("headroom")
    assert "under least-loaded 98.0 %" in said("headroom")
    static = said("least-loaded")
    assert "burst, load 1.2, by 35.0 points" in static
    assert "First tokens came late (55.0 % in time against 90.0 %)" in static
    assert "it deflected 20.0 %, headroom 20.0 %" in static


def test_late_gaps_are_told_from_late_first_tokens() -> None:
    rows = [cell("a", joint_99_frac=0.9), cell("b", joint_99_frac=0.5, tbt_99_met_frac=0.5)]
    both = [
        cell("a", ttft_met_frac=1.0),
        cell("b", joint_99_frac=0.2, ttft_met_frac=0.7, tbt_99_met_frac=0.7),
    ]
    for cells, words in ((rows, "Token gaps were late"), (both, "Both were late")):
        loser = next(s for s in standings(cells_of(cells), ("a", "b")) if s.policy == "b")
        assert words in where_it_loses(loser, axes_of(cells), 1)


def test_who_loses_nowhere_is_said_to() -> None:
    cells = [cell("a", joint_99_frac=0.9), cell("b", joint_99_frac=0.895)]
    first, second = standings(cells_of(cells), ("a", "b"))
    assert where_it_loses(first, axes_of(cells), 1) == "nowhere: no policy is better in any cell."
    assert "never by a point or more" in where_it_loses(second, axes_of(cells), 1)


def test_the_json_has_the_figures_unrounded_and_what_they_are_of() -> None:
    told = json.loads(standings_json(SWEEP))
    assert {"standings", "capacities", "matrix", "digest", "cells", "notes"} <= set(told)
    first = told["standings"][0]
    assert first["policy"] == "headroom"
    assert abs(first["regret_max_frac"] - 0.03) < 1e-9
    assert first["worst"]["load_frac"] == 0.6
    assert first["worst_best_policy"] == "least-loaded"


def test_a_single_policy_has_no_rival() -> None:
    out = StringIO()
    print_standings(sweep([cell("headroom")]), out)
    assert "*" not in out.getvalue()
