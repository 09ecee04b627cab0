"""The picture of a fitted step-time law: how well it predicts, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from spillway.report.plots import INK, MUTED, TARGET, new_figure, plain_ticks
from spillway.stats import percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGIME_STYLES = (("#0072B2", "o"), ("#E69F00", "s"), ("#D55E00", "^"), ("#009E73", "D"))
OUTLIERS_FRAC = 0.01  # of the errors, left outside the axes
AXES_MARGIN = 1.15
JITTER = (0.0, 0.16, -0.12, 0.08, -0.2, 0.24, -0.06, 0.12, -0.16, 0.2, -0.24, 0.04, -0.1)


class FitPoint(NamedTuple):
    """One step: its kind, how long it took, what the law says, and whether that was a fair test."""

    regime: str
    measured_s: float
    predicted_s: float
    scheduled_tokens: int
    held_out: bool


class ShownFit(NamedTuple):
    """A fit as it is drawn.

    regimes: the kinds of step, in the order to show them; those without a point are left out.
    limit_frac: the mean error above which it is refused.
    """

    title: str
    regimes: Sequence[str]
    points: Sequence[FitPoint]
    limit_frac: float


def fit_figure(shown: ShownFit) -> Figure:
    """Predicted over measured, errors by kind of step, and errors over the size of the step.

    Filled marks are steps that the law was not fitted to.
    """
    figure = new_figure(7.0)
    by_regime = {
        name: points
        for name in shown.regimes
        if (points := [one for one in shown.points if one.regime == name])
    }
    axes = figure.subplot_mosaic([["law", "kinds"], ["sizes", "sizes"]])
    _draw_law(axes["law"], by_regime)
    _draw_kinds(axes["kinds"], by_regime, shown.limit_frac)
    _draw_sizes(axes["sizes"], by_regime, shown.limit_frac)
    top_frac = _error_range_frac(shown)
    axes["kinds"].set_xlim(-top_frac * 100, top_frac * 100)
    axes["sizes"].set_ylim(-top_frac * 100, top_frac * 100)
    _legend(figure, list(by_regime), shown.title)
    return figure


def _draw_law(axes: Axes, by_regime: dict[str, list[FitPoint]]) -> None:
    axes.set(xscale="log", yscale="log")
    for at, points in enumerate(by_regime.values()):
        _scatter(
            axes, at, points, lambda one: one.measured_s * 1e3, lambda one: one.predicted_s * 1e3
        )
    both_ms = [
        time_s * 1e3
        for points in by_regime.values()
        for one in points
        for time_s in (one.measured_s, one.predicted_s)
    ]
    ends = (min(both_ms) / AXES_MARGIN, max(both_ms) * AXES_MARGIN)
    axes.plot(ends, ends, color=MUTED, linewidth=0.8, zorder=1.5)
    axes.set(xlim=ends, ylim=ends)
    axes.set(xlabel="measured step, ms (log scale)", ylabel="predicted step, ms (log scale)")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)


def _draw_kinds(axes: Axes, by_regime: dict[str, list[FitPoint]], limit_frac: float) -> None:
    """Each kind's held-out errors (all, where none is held out), their middle and 90 % range."""
    for at, points in enumerate(by_regime.values()):
        colour, _ = REGIME_STYLES[at % len(REGIME_STYLES)]
        fair = [one for one in points if one.held_out] or points
        errors = [_error_frac(one) * 100 for one in fair]
        heights = [at + JITTER[which % len(JITTER)] for which in range(len(errors))]
        axes.scatter(errors, heights, s=7, linewidths=0, alpha=0.45, color=colour)
        errors.sort()
        ends = (percentile(errors, 0.05), percentile(errors, 0.95))
        axes.plot(ends, (at, at), color=INK, linewidth=1.4)
        axes.plot([percentile(errors, 0.5)], [at], marker="|", markersize=14, color=INK)
    _zero_and_limit(axes, limit_frac, upright=True)
    axes.set_yticks(range(len(by_regime)), [name.replace(", ", ",\n") for name in by_regime])
    axes.set_ylim(len(by_regime) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("error on held-out steps, %")
    axes.set_title("bar: middle 90 %, tick: median", color=MUTED, fontsize=9)


def _draw_sizes(axes: Axes, by_regime: dict[str, list[FitPoint]], limit_frac: float) -> None:
    axes.set_xscale("log")
    for at, points in enumerate(by_regime.values()):
        _scatter(
            axes, at, points, lambda one: one.scheduled_tokens, lambda one: _error_frac(one) * 100
        )
    _zero_and_limit(axes, limit_frac, upright=False)
    axes.set(xlabel="scheduled tokens of the step (log scale)", ylabel="error, %")
    meaning = "above 0 the law says too much, below 0 too little; faint: fitted to, solid: held out"
    axes.set_title(meaning, color=MUTED, fontsize=9)
    plain_ticks(axes.xaxis)


def _scatter(
    axes: Axes,
    at: int,
    points: Sequence[FitPoint],
    across: Callable[[FitPoint], float],
    up: Callable[[FitPoint], float],
) -> None:
    """Draw one kind of step: fitted ones pale, held-out ones solid."""
    colour, marker = REGIME_STYLES[at % len(REGIME_STYLES)]
    for held_out, alpha, size in ((False, 0.3, 10), (True, 0.9, 14)):
        chosen = [one for one in points if one.held_out is held_out]
        axes.scatter(
            [across(one) for one in chosen],
            [up(one) for one in chosen],
            s=size,
            marker=marker,
            linewidths=0,
            alpha=alpha,
            color=colour,
        )


def _zero_and_limit(axes: Axes, limit_frac: float, *, upright: bool) -> None:
    line = axes.axvline if upright else axes.axhline
    line(0.0, color=MUTED, linewidth=0.8)
    for side in (-1, 1):
        line(side * limit_frac * 100, color=TARGET, linewidth=1.0, linestyle=":")


def _legend(figure: Figure, regimes: Sequence[str], title: str) -> None:
    from matplotlib.lines import Line2D

    marks = []
    for at, name in enumerate(regimes):
        colour, marker = REGIME_STYLES[at % len(REGIME_STYLES)]
        marks.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=name))
    figure.legend(
        handles=marks,
        title=title,
        alignment="left",
        loc="outside upper left",
        ncols=len(marks),
        handletextpad=0.2,
        fontsize=10,
    )


def _error_frac(point: FitPoint) -> float:
    return point.predicted_s / point.measured_s - 1


def _error_range_frac(shown: ShownFit) -> float:
    """Return how far the error axes reach: over all but the few largest errors, and the limit."""
    sizes = sorted(abs(_error_frac(point)) for point in shown.points)
    return 1.15 * max(shown.limit_frac, percentile(sizes, 1 - OUTLIERS_FRAC))
