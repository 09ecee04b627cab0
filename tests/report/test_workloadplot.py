"""The picture of a workload says what it shows, and holds every request."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.report.plots import write_figure
from spillway.report.workloadplot import ShownWorkload, workload_figure


def shown(count: int) -> ShownWorkload:
    return ShownWorkload(
        "a name", [3.0 + at for at in range(count)], [10 + at for at in range(count)], [1] * count
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 500])
def test_the_figure_is_written_and_labelled(tmp_path: Path, count: int) -> None:
    path = tmp_path / "plot.svg"
    write_figure(path, workload_figure, shown(count))
    text = path.read_text()
    for label in ("a name", "requests per second", "prompt tokens per second", "% of requests"):
        assert label in text


@pytest.mark.slow
def test_every_request_is_in_the_bars() -> None:
    figure = workload_figure(shown(500))
    rate, _, prompts, outputs = figure.axes
    data = rate.patches[0].get_data()
    widths_s = data.edges[1:] - data.edges[:-1]
    assert (data.values * widths_s).sum() == pytest.approx(500)
    for axes in (prompts, outputs):
        assert sum(bar.get_height() for bar in axes.patches) == pytest.approx(100)
