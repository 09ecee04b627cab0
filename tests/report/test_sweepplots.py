"""The figures of a sweep: what is chosen for them, and that each can be drawn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from spillway.report import sweepplots
from spillway.report.plots import inline_svg, write_figure
from spillway.report.sweepplots import SHOWN_ALWAYS, SHOWN_MAX, SweepShown, sweep_shown
from spillway.wire.cells import LENGTH_RANGES_TOKENS
from sweep_samples import cell, contest

PLOTS = (
    sweepplots.attainment_by_load,
    sweepplots.attainment_map,
    sweepplots.ttft_curves,
    sweepplots.gap_curves,
    sweepplots.parts_by_policy,
    sweepplots.deflected_by_length,
)


def many() -> SweepShown:
    names = ("round-robin", "least-loaded", "a", "b", "c", "d", "kairos-paper", "headroom")
    return sweep_shown(
        [
            cell(name, joint_99_frac=0.5 + at / 20, workload=workload)
            for workload in ("burst", "chat", "lpld", "hphd")
            for at, name in enumerate(names)
        ]
    )


def test_the_usual_policies_and_the_best_others_are_in_colour() -> None:
    shown = many()
    assert len(shown.shown) == SHOWN_MAX
    assert set(SHOWN_ALWAYS) < set(shown.shown)
    assert {"b", "c", "d"} < set(shown.shown)
    assert list(shown.shown) == [name for name in shown.ranked if name in shown.shown]


def test_no_axis_of_shares_goes_beyond_all_of_them() -> None:
    close = [cell(name, joint_99_frac=share) for name, share in (("a", 0.96), ("b", 1.0))]
    panel = sweepplots.attainment_by_load(sweep_shown(close)).axes[0]
    bottom, top = panel.get_ylim()
    assert bottom < 96 < 100 < top, "neither line lies on the frame"
    assert bottom <= min(panel.get_yticks()) < max(panel.get_yticks()) == 100


@pytest.mark.slow
@pytest.mark.parametrize("plot", PLOTS)
def test_every_figure_is_drawn_the_same_twice(plot: object) -> None:
    assert callable(plot)
    for shown in (many(), sweep_shown(contest().cells)):
        first = inline_svg(plot, shown, "x")
        assert first.startswith("<svg")
        assert first == inline_svg(plot, shown, "x")


@pytest.mark.slow
def test_the_map_rounds_nothing_up_to_a_hundred() -> None:
    shown = sweep_shown([cell("a", joint_99_frac=0.9999), cell("b", joint_99_frac=1.0)])
    svg = inline_svg(sweepplots.attainment_map, shown, "x")
    assert ">99.9<" in svg
    assert ">100<" in svg


@pytest.mark.slow
def test_runs_without_a_token_can_be_drawn(tmp_path: Path) -> None:
    nothing = [0] * len(LENGTH_RANGES_TOKENS)
    empty = [
        cell(
            name,
            ttft_curve_s=[],
            gap_curve_s=[],
            length_requests=nothing,
            length_deflected=nothing,
            joint_99_frac=0.0,
        )
        for name in ("a", "headroom")
    ]
    for plot in PLOTS:
        write_figure(tmp_path / "x.png", plot, sweep_shown(empty))
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_no_two_headings_of_the_map_run_into_each_other() -> None:
    names = [f"workload-{at}-of-eight" for at in range(8)]
    shown = sweep_shown([cell("a", workload=name) for name in names])
    figure = sweepplots.attainment_map(shown)
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = [one.get_window_extent() for one in axes.texts if one.get_text().startswith("work")]
    assert len(boxes) == len(names)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
