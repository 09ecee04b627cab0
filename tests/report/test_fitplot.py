"""The picture of a fit: every kind of step is in it, and the axes hold what matters."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.report.fitplot import FitPoint, ShownFit, fit_figure
from spillway.report.plots import write_figure

KINDS = ("decode only", "mixed", "prefill only")


def shown(*points: FitPoint, kinds: tuple[str, ...] = KINDS) -> ShownFit:
    return ShownFit("a model", kinds, points, 0.1)


def points(kind: str, error_frac: float) -> list[FitPoint]:
    return [
        FitPoint(kind, at * 0.01, at * 0.01 * (1 + error_frac), 2**at, at % 3 == 0)
        for at in range(1, 10)
    ]


@pytest.mark.slow
def test_a_figure_is_written(tmp_path: Path) -> None:
    path = tmp_path / "fit.svg"
    write_figure(path, fit_figure, shown(*points(KINDS[0], 0.02), *points(KINDS[2], -0.05)))
    svg = path.read_text()
    assert "a model" in svg
    assert KINDS[0] in svg
    assert KINDS[2] in svg
    assert KINDS[1] not in svg  # there is none of it


def test_kinds_keep_their_order_and_the_limit_is_in_sight() -> None:
    figure = fit_figure(shown(*points(KINDS[2], 0.02), *points(KINDS[0], 0.01)))
    law, kinds, sizes = figure.axes
    assert [label.get_text() for label in kinds.get_yticklabels()] == [KINDS[0], KINDS[2]]
    for low, high in (kinds.get_xlim(), sizes.get_ylim()):
        assert low < -10 < 10 < high
    assert law.get_xlim() == law.get_ylim()


def test_a_few_outliers_do_not_set_the_scale() -> None:
    many = [point for _ in range(30) for point in points(KINDS[0], 0.02)]
    figure = fit_figure(shown(*many, FitPoint(KINDS[0], 0.01, 0.1, 5, True)))
    assert figure.axes[2].get_ylim()[1] < 20
