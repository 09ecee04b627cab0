"""The figures: drawn for any data, from the data, and without touching the caller's settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from report_samples import Sample, make_sample, make_series
from spillway.core.errors import ConfigError
from spillway.report import plots
from spillway.report.plots import POLICY_STYLES, Plot, Series, Shown, inline_svg, write_figure
from spillway.stats import GapHistogram

ALL: list[Plot] = [
    plots.ttft_cdf,
    plots.gap_tail,
    plots.ttft_parts,
    plots.over_time,
    plots.overview,
]
pytestmark = pytest.mark.slow  # matplotlib alone takes longer than a quarter of a second to import


def shown(sample: Sample) -> Shown:
    return Shown(sample.series, sample.runs)


@pytest.mark.parametrize("plot", ALL)
def test_a_figure_is_an_element_for_a_page(plot: Plot, sample: Sample) -> None:
    svg = inline_svg(plot, shown(sample), "name")
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "http" not in svg
    assert {text[:5] for text in re.findall(r' id="([^"]*)"', svg)} == {"name-"}
    targets = set(re.findall(r'(?:href="|url\()#([^")]*)', svg))
    assert targets <= set(re.findall(r' id="([^"]*)"', svg))


@pytest.mark.parametrize("plot", ALL)
@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("headroom", [], GapHistogram())],
        [make_series("headroom", 1.0, failed=40)],
        [make_series("one of our own", 0.0), make_series("one of our own", 0.5)],
    ],
    ids=["no run", "no request", "no token", "unknown policy twice"],
)
def test_a_figure_of_little_is_still_a_figure(plot: Plot, series: list[Series]) -> None:
    assert inline_svg(plot, shown(make_sample(*series)), "x").endswith("</svg>")


def test_the_same_data_give_the_same_bytes(sample: Sample, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    write_figure(first, plots.ttft_cdf, shown(sample))
    write_figure(second, plots.ttft_cdf, shown(sample))
    assert first.read_bytes() == second.read_bytes()


def test_a_figure_is_written_in_the_form_its_name_says(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_figure(path, plots.gap_tail, shown(sample))
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_curve_counts_requests_without_a_token() -> None:
    axes = _axes(plots.ttft_cdf, make_series("headroom", 1.0, failed=10))[0]
    (curve,) = [line for line in axes.lines if line.get_label() == "headroom"]
    assert curve.get_ydata()[-1] == pytest.approx(75.0)
    assert curve.get_xdata()[-1] == pytest.approx(30 / 40 + 0.22)


def test_the_tail_ends_at_the_longest_gap() -> None:
    series = make_series("headroom", 1.0)
    series.gaps.add(0.25)
    axes = _axes(plots.gap_tail, series)[0]
    (curve,) = [line for line in axes.lines if line.get_label() == "headroom"]
    assert curve.get_xdata()[-1] == pytest.approx(250.0)
    assert curve.get_ydata()[-1] == pytest.approx(100 / 81)


def test_targets_are_marked_and_named() -> None:
    texts = [text.get_text() for text in _axes(plots.ttft_cdf, make_series("x", 1.0))[0].texts]
    assert "target 1 s" in texts
    texts = [text.get_text() for text in _axes(plots.gap_tail, make_series("x", 1.0))[0].texts]
    assert "target 60 ms" in texts


def test_bars_start_at_zero_and_add_up(sample: Sample) -> None:
    axes = _axes(plots.ttft_parts, *sample.series)[0]
    assert axes.get_xlim()[0] == 0
    for at, run in enumerate(sample.runs):
        bars = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == at]
        total_s = sum(run.ttft_parts_p95_s.values())
        assert sum(bar.get_width() for bar in bars) == pytest.approx(total_s)
        assert f"{total_s:.2f} s" in [text.get_text() for text in axes.texts]


def test_requests_are_drawn_where_they_arrived_and_the_deflected_ones_apart(
    sample: Sample,
) -> None:
    load, *ttfts, share = _axes(plots.over_time, *sample.series)
    heights, edges, _ = load.patches[0].get_data()
    arrived_thousands = sum(heights * (edges[1:] - edges[:-1]))
    assert arrived_thousands == pytest.approx(sum(1000 + i for i in range(40)) / 1000)
    counts = [[len(dots.get_offsets()) for dots in axes.collections] for axes in ttfts]
    assert counts == [[40], [30, 10], [30, 10]]
    titles = [axes.get_title(loc="left") for axes in ttfts]
    assert titles[0] == "least-loaded: none deflected"
    assert titles[2] == "headroom: 25 % deflected, in colour"
    assert share.get_ylim()[0] == 0


def test_a_policy_looks_the_same_in_every_figure(sample: Sample) -> None:
    for plot in (plots.ttft_cdf, plots.gap_tail):
        lines = {line.get_label(): line for line in _axes(plot, *sample.series)[0].lines}
        for policy in ("least-loaded", "kairos-paper", "headroom"):
            assert lines[policy].get_color() == POLICY_STYLES[policy][0]
    colours = [colour for colour, _ in POLICY_STYLES.values()]
    assert len(set(colours)) == len(colours)


def test_the_callers_settings_stay_as_they_are(sample: Sample) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    inline_svg(plots.overview, shown(sample), "x")
    assert dict(matplotlib.rcParams) == before


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    kept = plots._thinned(100_000)
    assert len(kept) == plots.CURVE_POINTS_MAX
    assert (kept[0], kept[-1]) == (0, 99_999)
    assert kept == sorted(set(kept))
    assert plots._thinned(3) == [0, 1, 2]


def test_without_matplotlib_the_remedy_is_named(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'spillway\[report\]'"):
        inline_svg(plots.ttft_cdf, shown(sample), "x")


def _axes(plot: Plot, *series: Series) -> Any:
    from matplotlib import rc_context

    with rc_context(plots.STYLE):
        return plot(shown(make_sample(*series))).axes
