"""Scores, regret and who is best where."""

from __future__ import annotations

import pytest

from spillway.report.standings import axes_of, cells_of, focus_cell, standings, ttft_factor
from sweep_samples import cell, contest

CELLS = cells_of(contest().cells)
AXES = axes_of(contest().cells)


def test_a_cell_holds_every_policy_and_seed_of_one_setting() -> None:
    assert [one.name.load_frac for one in CELLS] == [0.6, 1.2]
    assert all(set(one.runs) == {"least-loaded", "headroom"} for one in CELLS)
    assert all([run.seed for run in runs] == [1, 2] for one in CELLS for runs in one.runs.values())


def test_the_score_is_the_mean_over_seeds_and_regret_what_the_best_has_more() -> None:
    light, heavy = CELLS
    assert light.score_frac("least-loaded") == pytest.approx(0.98)
    assert (light.best(), heavy.best()) == ("least-loaded", "headroom")
    assert light.regret_frac("headroom") == pytest.approx(0.03)
    assert light.regret_frac("least-loaded") == 0
    assert heavy.regret_range_frac("least-loaded") == pytest.approx((0.30, 0.40))
    assert heavy.best_static() == "least-loaded"


def test_the_smallest_worst_cell_regret_stands_first() -> None:
    first, last = standings(CELLS, AXES.policies)
    assert (first.policy, last.policy) == ("headroom", "least-loaded")
    assert first.regret_max_frac == pytest.approx(0.03)
    assert first.worst is CELLS[0]
    assert last.regret_max_frac == pytest.approx(0.35)
    assert last.regret_mean_frac == pytest.approx(0.175)
    assert (first.as_good_count, last.as_good_count) == (1, 1)


def test_ttft_is_set_against_the_best_static_policy_seed_by_seed() -> None:
    cells = cells_of(
        [
            cell("least-loaded", seed=1, ttft_p95_s=1.0),
            cell("least-loaded", seed=2, ttft_p95_s=4.0),
            cell("headroom", seed=1, ttft_p95_s=0.5),
            cell("headroom", seed=2, ttft_p95_s=0.5),
        ]
    )
    assert ttft_factor(cells, "headroom") == pytest.approx((0.5 * 0.125) ** 0.5)
    assert ttft_factor(cells, "least-loaded") == pytest.approx(1.0)
    assert ttft_factor(cells_of([cell("headroom")]), "headroom") == 0, "no static policy was run"


def test_the_figures_look_at_the_cell_where_deflection_matters_most() -> None:
    assert focus_cell(CELLS) is CELLS[1]
    poor = cell("colocated", load_frac=0.6, joint_99_frac=0.0)
    assert focus_cell(cells_of([*contest().cells, poor])).name.load_frac == 1.2
    no_static = [cell("headroom", load_frac=0.6), poor, cell("headroom", load_frac=1.2)]
    assert focus_cell(cells_of(no_static)).name.load_frac == 0.6


def test_a_cell_is_named_without_the_axes_that_do_not_vary() -> None:
    assert CELLS[0].name.text(AXES) == "burst, load 0.6"
    two = axes_of([cell(target="tight"), cell(target="loose"), cell(cluster="1p3d")])
    assert CELLS[0].name.text(two) == "burst, load 0.6, usual, 2p2d"
