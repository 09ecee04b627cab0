"""The figures of a sweep, drawn from its rows alone.

A few policies are drawn in colour, the others in grey behind them or in the heat map, which has all
of them: nineteen lines in nineteen colours could not be told apart by anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isnan, nan
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from spillway.report.plots import (
    INK,
    LOAD,
    LOG_FLOOR_S,
    MUTED,
    OTHER_STYLES,
    PART_COLOURS,
    POLICY_STYLES,
    TARGET,
    new_figure,
    plain_ticks,
)
from spillway.report.standings import (
    Axes,
    Cell,
    axes_of,
    cells_of,
    focus_cell,
    mean,
    standings,
)
from spillway.stats import percentile
from spillway.wire.cells import (
    GAP_CURVE_FRACS,
    LENGTH_RANGES_TOKENS,
    PARTS,
    TTFT_CURVE_FRACS,
    CellResult,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Panel
    from matplotlib.figure import Figure

MAP_HEAD_CHARS = 60  # side by side above the heat map
SHOWN_ALWAYS = ("least-loaded", "kairos-paper", "headroom")
SHOWN_MAX = 6
PANELS_PER_ROW = 3
FEW_REQUESTS = 20  # a share of fewer requests than this is not drawn
GREY = "#C9C9C9"


class SweepShown(NamedTuple):
    """What the figures are drawn from. shown: the policies in colour. focus: looked at closely."""

    axes: Axes
    cells: list[Cell]
    shown: tuple[str, ...]
    focus: Cell
    ranked: tuple[str, ...]


def sweep_shown(results: Sequence[CellResult]) -> SweepShown:
    """Return the rows arranged for the figures, with the policies that stand out chosen.

    In colour are the usual three, as far as they were run, and the best of the others.
    """
    axes, cells = axes_of(results), cells_of(results)
    ranked = tuple(one.policy for one in standings(cells, axes.policies))
    usual = [name for name in SHOWN_ALWAYS if name in ranked]
    others = [name for name in ranked if name not in usual][: SHOWN_MAX - len(usual)]
    in_order = tuple(name for name in ranked if name in {*usual, *others})
    return SweepShown(axes, cells, in_order, focus_cell(cells), ranked)


def attainment_by_load(what: SweepShown) -> Figure:
    """One panel per workload: share of the requests that met both targets, over the load."""
    workloads = what.axes.workloads
    rows = -(-len(workloads) // PANELS_PER_ROW)
    figure = new_figure(1.0 + 2.4 * rows)
    columns = min(PANELS_PER_ROW, len(workloads))
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    for panel, workload in zip(panels, workloads, strict=False):
        for policy in [*(p for p in what.ranked if p not in what.shown), *what.shown]:
            scores = [_score(what, workload, load_frac, policy) for load_frac in what.axes.loads]
            panel.plot(what.axes.loads, scores, **_line(policy, what), marker="o", markersize=3)
        panel.set_title(workload)
        panel.set_xticks(what.axes.loads)
        panel.xaxis.set_tick_params(labelbottom=True)
    for panel in panels[len(workloads) :]:
        panel.remove()
    for at, panel in enumerate(panels[: len(workloads)]):
        if at % columns == 0:
            panel.set_ylabel("both targets met, %")
        panel.set_xlabel("load (1: static capacity)")
    bottom, _ = panels[0].get_ylim()
    panels[0].set_yticks([at for at in panels[0].get_yticks() if bottom <= at <= 100])
    panels[0].set_ylim(bottom, 100 + 0.03 * (100 - bottom))  # a line at 100 % is seen whole
    _legend(figure, what)
    return figure


def attainment_map(what: SweepShown) -> Figure:
    """Every policy in every workload and load: the share in per cent, dark where it is low."""
    import numpy as np

    columns = [(w, load) for w in what.axes.workloads for load in what.axes.loads]
    shares = np.array(
        [[_score(what, *column, policy) for column in columns] for policy in what.ranked]
    )
    figure = new_figure(1.5 + 0.27 * len(what.ranked))
    axes = figure.subplots()
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for row in range(shares.shape[0]):
        for column in range(shares.shape[1]):
            value = shares[row, column]
            if isnan(value):
                continue
            text = "100" if value == 100 else f"{min(value, 99.9):.1f}"  # 100 is for all alone
            ink = "white" if value < 55 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_yticks(range(len(what.ranked)), what.ranked)
    axes.set_xticks(range(len(columns)), [f"{load:g}" for _, load in columns])
    axes.set_xlabel("load (1: capacity of the best static policy)")
    axes.tick_params(length=0, labelcolor=INK)
    axes.grid(visible=False)
    step = len(what.axes.loads)
    for at, workload in enumerate(what.axes.workloads):
        axes.annotate(
            fill(workload, max(4, MAP_HEAD_CHARS // len(what.axes.workloads))),
            ((at + 0.5) * step - 0.5, -0.5),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            weight="bold",
        )
        if at:
            axes.axvline(at * step - 0.5, color="white", linewidth=3)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


def ttft_curves(what: SweepShown) -> Figure:
    """Share of requests with a first token within x: the median over seeds, and their range."""
    figure = new_figure(4.2)
    axes = figure.subplots()
    axes.set_xscale("log")
    shares = [share * 100 for share in TTFT_CURVE_FRACS]
    _draw_curves(axes, what, lambda run: run.ttft_curve_s, shares, 1.0)
    axes.axhline(95, color=MUTED, linewidth=0.8)
    beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points"}
    axes.annotate(
        "p95", (1, 95), xycoords=("axes fraction", "data"), color=MUTED, va="center", **beside
    )
    axes.set(ylim=(0, 101), xlabel="time to first token, s (log scale)")
    axes.set_ylabel("requests with a first token, %")
    plain_ticks(axes.xaxis)
    _target(axes, _slo(what).slo_ttft_s, "s", 1.0)
    _legend(figure, what, others=False)
    return figure


def gap_curves(what: SweepShown) -> Figure:
    """Share of token gaps at least x long: the median over seeds, and their range."""
    figure = new_figure(4.2)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    shares = [(1 - share) * 100 for share in GAP_CURVE_FRACS]
    _draw_curves(axes, what, lambda run: run.gap_curve_s, shares, 1e3)
    axes.set(xlabel="gap between tokens, ms (log scale)", ylabel="gaps ≥ x, % (log scale)")
    axes.set_ylim(min(shares), 100)
    axes.set_xlim(left=_gaps_from_ms(what))
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    _target(axes, _slo(what).slo_tbt_s, "ms", 1e3)
    _legend(figure, what, others=False)
    return figure


def parts_by_policy(what: SweepShown) -> Figure:
    """Where the p95 TTFT of the focus cell went, a bar per policy: means over the seeds."""
    figure = new_figure(1.3 + 0.3 * len(what.ranked))
    axes = figure.subplots()
    left_s = [0.0] * len(what.ranked)
    for part in PARTS:
        widths_s = [
            mean(run.parts_s[part] for run in what.focus.runs[policy]) for policy in what.ranked
        ]
        label = part.replace("_", " ")
        axes.barh(
            what.ranked, widths_s, left=left_s, color=PART_COLOURS[part], label=label, height=0.68
        )
        left_s = [start + width for start, width in zip(left_s, widths_s, strict=True)]
    beside: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "fontsize": 9}
    for at, total_s in enumerate(left_s):
        axes.annotate(f"{total_s:.2f} s", (total_s, at), va="center_baseline", **beside)
    axes.set_xlim(0, max([*left_s, 1e-3]) * 1.12)
    axes.set_xlabel("parts of the p95 time to first token, s")
    axes.set_ylim(len(what.ranked) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    figure.legend(loc="outside upper left", ncols=len(PARTS), handlelength=1.0)
    return figure


def deflected_by_length(what: SweepShown) -> Figure:
    """Share of the requests deflected, by the length of the prompt, over all cells."""
    figure = new_figure(4.4)
    top, bottom = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    every = [run for cell in what.cells for runs in cell.runs.values() for run in runs]
    met = [
        at for at in range(len(LENGTH_RANGES_TOKENS)) if any(r.length_requests[at] for r in every)
    ]
    total = sum(sum(run.length_requests) for run in every) or 1
    for policy in what.shown:
        runs = [run for cell in what.cells for run in cell.runs[policy]]
        counts = {at: sum(run.length_requests[at] for run in runs) for at in met}
        held = [at for at in met if counts[at] >= FEW_REQUESTS]
        shares = [sum(run.length_deflected[at] for run in runs) / counts[at] * 100 for at in held]
        top.plot(held, shares, **_line(policy, what), marker="o", markersize=4)
    top.set(ylim=(-2, 101), ylabel="deflected, %")
    shares = [sum(run.length_requests[at] for run in every) / total * 100 for at in met]
    bottom.bar(met, shares, color=LOAD, width=0.9)
    bottom.set_ylabel("requests, %")
    bottom.set_xticks(met, [_range_text(at) for at in met], fontsize=9)
    bottom.set_xlabel("prompt length, tokens")
    _legend(figure, what, others=False)
    figure.align_ylabels()
    return figure


def _score(what: SweepShown, workload: str, load_frac: float, policy: str) -> float:
    """Return a policy's mean attainment in per cent, NaN where it was not run."""
    scores = [
        cell.score_frac(policy)
        for cell in what.cells
        if (cell.name.workload, cell.name.load_frac) == (workload, load_frac)
    ]
    return 100 * mean(scores) if scores else nan


def _draw_curves(
    axes: Panel,
    what: SweepShown,
    curve: Callable[[CellResult], list[float]],
    shares: Sequence[float],
    per_s: float,
) -> None:
    """Draw each policy's quantiles in the focus cell: middle seed as a line, all as a band."""
    for policy in what.shown:
        curves = [values for run in what.focus.runs[policy] if (values := curve(run))]
        if not curves:
            continue
        by_share = [sorted(values) for values in zip(*curves, strict=True)]
        middle = [max(percentile(values, 0.5), LOG_FLOOR_S) * per_s for values in by_share]
        low = [max(values[0], LOG_FLOOR_S) * per_s for values in by_share]
        high = [max(values[-1], LOG_FLOOR_S) * per_s for values in by_share]
        style = _line(policy, what)
        if policy in SHOWN_ALWAYS:  # more bands than three would be mud
            axes.fill_betweenx(shares, low, high, color=style["color"], alpha=0.15, linewidth=0)
        axes.plot(middle, shares, **style)


def _gaps_from_ms(what: SweepShown) -> float:
    """Return where the gap axis begins: a gap of 0, of tokens in one step, has no place on it."""
    runs = [run for policy in what.shown for run in what.focus.runs[policy] if run.gap_curve_s]
    firsts_ms = [gap_s * 1e3 for run in runs for gap_s in run.gap_curve_s if gap_s > LOG_FLOOR_S]
    return min(firsts_ms, default=1.0) * 0.9


def _slo(what: SweepShown) -> CellResult:
    """Return a run of the focus cell, for its targets."""
    return next(iter(what.focus.runs.values()))[0]


def _target(axes: Panel, value_s: float, unit: str, per_s: float) -> None:
    value = value_s * per_s
    axes.axvline(value, color=TARGET, linewidth=1.2, linestyle=":", zorder=1.5)
    above: dict[str, Any] = {"xytext": (0, 3), "textcoords": "offset points"}
    said = f"target {value:g} {unit}"
    axes.annotate(
        said,
        (value, 1.0),
        xycoords=("data", "axes fraction"),
        ha="center",
        color=TARGET,
        fontsize=10,
        **above,
    )


def _range_text(at: int) -> str:
    """Return a range of lengths, as `128 to 255` on two lines or `32k and more`."""
    if at + 1 == len(LENGTH_RANGES_TOKENS):
        return f"{_tokens_text(LENGTH_RANGES_TOKENS[at])}\nand more"
    first, after = LENGTH_RANGES_TOKENS[at], LENGTH_RANGES_TOKENS[at + 1]
    return f"{_tokens_text(first)}\nto {_tokens_text(after)}"


def _tokens_text(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 else str(tokens)


def _line(policy: str, what: SweepShown) -> dict[str, Any]:
    if policy not in what.shown:
        return {"color": GREY, "linewidth": 0.8, "zorder": 1.2}
    if policy in POLICY_STYLES:
        colour, dashes = POLICY_STYLES[policy]
    else:
        others = [name for name in what.shown if name not in POLICY_STYLES]
        colour, dashes = OTHER_STYLES[others.index(policy) % len(OTHER_STYLES)]
    return {"color": colour, "linestyle": dashes, "label": policy, "linewidth": 1.8}


def _legend(figure: Figure, what: SweepShown, *, others: bool = True) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **_line(policy, what)) for policy in what.shown]
    if others and len(what.ranked) > len(what.shown):
        lines.append(Line2D([], [], color=GREY, linewidth=0.8, label="the others"))
    figure.legend(handles=lines, loc="outside upper left", ncols=4)
