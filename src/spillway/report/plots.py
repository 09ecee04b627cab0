"""The figures of a comparison, drawn from request records and gap histograms.

One look for all: a policy has the same colour and line everywhere, targets are dotted lines with a
label, axes start at 0 or say that they are logarithmic. The palette is Okabe and Ito's, which
people with any colour vision tell apart. matplotlib is imported when a figure is drawn, not before:
it takes longer to start than a small run takes to finish.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from spillway.core.errors import ConfigError
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord
from spillway.wire.results import RunResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#1a1a1a", "#5f5f5f", "#dddddd"
TARGET, LOAD, PREFILLED = "#B22222", "#B8B8B8", "#9A9A9A"
POLICY_STYLES: dict[str, tuple[str, Any]] = {  # colour and line of the policies that come with us
    "round-robin": ("#8C8C8C", (0, (1, 1))),
    "least-loaded": ("#4D4D4D", (0, (4, 1.5))),
    "threshold": ("#CC79A7", (0, (6, 1.5, 1, 1.5))),
    "kairos-paper": ("#E69F00", (0, (8, 1.5))),
    "headroom": ("#0072B2", "-"),
}
OTHER_STYLES: tuple[tuple[str, Any], ...] = (("#009E73", "--"), ("#D55E00", "-."), ("#56B4E9", ":"))
PART_COLOURS = {
    "queue": "#D55E00",
    "execute": "#56B4E9",
    "transfer": "#009E73",
    "admission": "#F0E442",
    "first_step": "#999999",
}
CURVE_POINTS_MAX = 1500  # a longer curve is thinned; a page stays small and looks the same
TARGETS_SHOWN_MAX = 2
TAIL_POINTS = 200
LOG_FLOOR_S = 1e-4  # what is shorter is drawn as this: a logarithmic axis has no 0
TIME_BINS, SHARE_BINS = 120, 40
RASTER_POINTS_MIN = 500  # from here on points are drawn as an image inside the SVG
FIGURE_WIDTH_INCHES = 8.0
LEGEND_COLUMNS = 5
DOTS_PER_INCH = 200
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 3,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: small, sharp, and found by a page search
    "svg.hashsalt": "spillway",  # the same data give the same bytes
}


class Series(NamedTuple):
    """One policy's run: its requests, and every token gap of them."""

    policy: str
    records: Sequence[RequestRecord]
    gaps: GapHistogram


class Shown(NamedTuple):
    """What the figures are drawn from. `runs` are the summaries of `series`, in the same order."""

    series: Sequence[Series]
    runs: Sequence[RunResult]


class Scale(NamedTuple):
    """How seconds are written on an axis."""

    unit: str
    per_s: float


SECONDS, MILLISECONDS = Scale("s", 1.0), Scale("ms", 1e3)
Plot = Callable[[Shown], "Figure"]
T = TypeVar("T")  # what a figure is drawn from


def write_figure(path: str | Path, plot: Callable[[T], Figure], shown: T) -> None:
    """Write one figure; the ending of `path` says whether as PNG, SVG or PDF."""
    ending = Path(path).suffix.removeprefix(".").lower()
    Path(path).write_bytes(_rendered(plot, shown, ending))


def inline_svg(plot: Callable[[T], Figure], shown: T, name: str) -> str:
    """Return a figure as an <svg> element for a page. `name` keeps its ids apart from others'."""
    text = _rendered(plot, shown, "svg").decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # HTML knows them
    text = re.sub(r' id="', f' id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("xlink:href", "href").strip()


def ttft_cdf(shown: Shown) -> Figure:
    """Share of all arrived requests that had their first token within x seconds."""
    figure = new_figure(4.2)
    _draw_cdf(figure.subplots(), shown)
    _legend(figure, shown)
    return figure


def gap_tail(shown: Shown) -> Figure:
    """Share of all token gaps that are at least x long."""
    figure = new_figure(4.2)
    _draw_tail(figure.subplots(), shown)
    _legend(figure, shown)
    return figure


def overview(shown: Shown) -> Figure:
    """Both sides of the bargain side by side: first tokens on the left, token gaps on the right."""
    figure = new_figure(3.9)
    left, right = figure.subplots(1, 2)
    _draw_cdf(left, shown)
    _draw_tail(right, shown)
    _legend(figure, shown)
    return figure


def ttft_parts(shown: Shown) -> Figure:
    """Where the time of a p95 TTFT went, one bar per run whose parts were recorded."""
    runs = [run for run in shown.runs if run.ttft_parts_p95_s]
    figure = new_figure(1.5 + 0.5 * max(1, len(runs)))
    axes = figure.subplots()
    names = [run.policy for run in runs]
    left_s = [0.0] * len(runs)
    for part, colour in PART_COLOURS.items():
        widths_s = [run.ttft_parts_p95_s.get(part, 0.0) for run in runs]
        axes.barh(
            names, widths_s, left=left_s, color=colour, label=part.replace("_", " "), height=0.62
        )
        left_s = [start + width for start, width in zip(left_s, widths_s, strict=True)]
    for at, total_s in enumerate(left_s):
        offset: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points"}
        axes.annotate(f"{total_s:.2f} s", (total_s, at), va="center_baseline", **offset)
    axes.set_xlim(0, max([*left_s, 1e-3]) * 1.12)
    axes.set_xlabel("parts of the p95 time to first token, s")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    figure.legend(loc="outside upper left", ncols=len(PART_COLOURS), handlelength=1.0)
    return figure


def over_time(shown: Shown) -> Figure:
    """The load, each request's TTFT by policy, and the share deflected, over the time of arrival.

    Requests prefilled in the prefill pool are grey, deflected ones have their policy's colour.
    """
    rows = len(shown.series)
    figure = new_figure(2.6 + 1.35 * rows)
    heights = [0.8, *[1.35] * rows, 0.9]
    axes = figure.subplots(rows + 2, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    _draw_load(axes[0], shown)
    for at, one in enumerate(shown.series, start=1):
        if at > 1:
            axes[at].sharey(axes[1])
        _draw_ttfts(axes[at], one, shown)
    _draw_deflected(axes[-1], shown)
    axes[-1].set_xlim(0, _end_s(shown))
    axes[-1].set_xlabel("time of arrival, s")
    figure.align_ylabels()
    return figure


def _draw_cdf(axes: Axes, shown: Shown) -> None:
    axes.set_xscale("log")
    for one in shown.series:
        ttfts_s = sorted(ttft_s for _, ttft_s in _first_tokens(one.records))
        kept = _thinned(len(ttfts_s))
        # Of the arrived, not of the answered: a failed request keeps its curve below 100 %.
        shares = [(at + 1) / len(one.records) * 100 for at in kept]
        axes.plot([ttfts_s[at] for at in kept], shares, **_line(one.policy, shown))
    axes.set(ylim=(0, 101), xlabel="time to first token, s (log scale)")
    axes.set_ylabel("requests with a first token, %")
    axes.axhline(95, color=MUTED, linewidth=0.8)
    offset: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points"}
    axes.annotate(
        "p95", (1, 95), xycoords=("axes fraction", "data"), color=MUTED, va="center", **offset
    )
    plain_ticks(axes.xaxis)
    _targets(axes, "x", _of_all(shown, lambda record: record.slo_ttft_s), SECONDS)


def _draw_tail(axes: Axes, shown: Shown) -> None:
    lowest_frac = 0.1
    axes.set(xscale="log", yscale="log")
    for one in shown.series:
        if not one.gaps.count:
            continue
        last_frac = 1 / one.gaps.count
        # One point per gap: the histogram's buckets would show as stairs.
        curve: dict[float, float] = {}
        for at in range(TAIL_POINTS + 1):
            share = last_frac ** (at / TAIL_POINTS)
            # Of n gaps, share·n are at least as long as the one at rank n - share·n.
            below_frac = min(1.0, (1 - share) / (1 - last_frac)) if last_frac < 1 else 1.0
            gap_s = max(one.gaps.quantile(below_frac), LOG_FLOOR_S)
            curve[gap_s * 1e3] = share * 100
        axes.plot(list(curve), list(curve.values()), **_line(one.policy, shown))
        lowest_frac = min(lowest_frac, last_frac)
    axes.set_ylim(lowest_frac * 100, 100)
    axes.set(xlabel="gap between tokens, ms (log scale)", ylabel="gaps ≥ x, % (log scale)")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    _targets(axes, "x", _of_all(shown, lambda record: record.slo_tbt_s), MILLISECONDS)


def _draw_load(axes: Axes, shown: Shown) -> None:
    """Prompt tokens that arrived per second: the same for every policy, so of the first."""
    records = shown.series[0].records if shown.series else ()
    bin_s = _end_s(shown) / TIME_BINS
    tokens = [0] * TIME_BINS
    for record in records:
        tokens[min(int(record.arrival_s / bin_s), TIME_BINS - 1)] += record.prompt_tokens
    edges_s = [at * bin_s for at in range(TIME_BINS + 1)]
    axes.stairs([count / bin_s / 1e3 for count in tokens], edges_s, fill=True, color=LOAD)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("load,\nktok/s")
    axes.set_title("load: prompt tokens arriving", color=MUTED)


def _draw_ttfts(axes: Axes, one: Series, shown: Shown) -> None:
    colour = _style(one.policy, shown)[0]
    axes.set_yscale("log")
    for deflected, dots in ((False, PREFILLED), (True, colour)):
        points = _first_tokens([r for r in one.records if (r.route == "deflected") is deflected])
        if not points:
            continue
        axes.scatter(
            [at_s for at_s, _ in points],
            [ttft_s for _, ttft_s in points],
            s=8,
            linewidths=0,
            alpha=0.7,
            color=dots,
            rasterized=len(points) > RASTER_POINTS_MIN,
        )
    axes.set_ylabel("TTFT, s\n(log scale)")
    deflected_frac = sum(r.route == "deflected" for r in one.records) / max(1, len(one.records))
    share = (
        f"{deflected_frac * 100:.0f} % deflected, in colour" if deflected_frac else "none deflected"
    )
    axes.set_title(f"{one.policy}: {share}", color=colour, weight="bold")
    plain_ticks(axes.yaxis)
    _targets(axes, "y", (record.slo_ttft_s for record in one.records), SECONDS)


def _draw_deflected(axes: Axes, shown: Shown) -> None:
    bin_s = _end_s(shown) / SHARE_BINS
    for one in shown.series:
        arrived, deflected = [0] * SHARE_BINS, [0] * SHARE_BINS
        for record in one.records:
            at = min(int(record.arrival_s / bin_s), SHARE_BINS - 1)
            arrived[at] += 1
            deflected[at] += record.route == "deflected"
        shares = [
            part / whole * 100 if whole else nan
            for part, whole in zip(deflected, arrived, strict=True)
        ]
        edges = [at * bin_s for at in range(SHARE_BINS + 1)]
        style = _line(one.policy, shown) | {"linewidth": 1.6}
        axes.stairs(shares, edges, baseline=None, **style)
    axes.set_ylim(0, 101)
    axes.set_ylabel("share,\n%")
    axes.set_title("share of the arriving requests that is deflected", color=MUTED)


def _first_tokens(records: Iterable[RequestRecord]) -> list[tuple[float, float]]:
    """Return arrival and TTFT of the requests with a first token, fit for a logarithmic axis."""
    return [(r.arrival_s, max(r.ttft_s, LOG_FLOOR_S)) for r in records if r.ttft_s is not None]


def new_figure(height_inches: float) -> Figure:
    """Return an empty figure of the width that all of ours have."""
    from matplotlib.figure import Figure

    return Figure(figsize=(FIGURE_WIDTH_INCHES, height_inches), layout="constrained")


def _rendered(plot: Callable[[T], Figure], shown: T, ending: str) -> bytes:
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError:
        raise ConfigError(
            "plots need matplotlib, which is not installed: pip install 'spillway[report]'"
        ) from None
    buffer = BytesIO()
    with rc_context(STYLE):  # the caller's own settings stay as they are
        metadata = {"Date": None} if ending == "svg" else None
        plot(shown).savefig(buffer, format=ending, dpi=DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()


def _style(policy: str, shown: Shown) -> tuple[str, Any]:
    if policy in POLICY_STYLES:
        return POLICY_STYLES[policy]
    others = [one.policy for one in shown.series if one.policy not in POLICY_STYLES]
    return OTHER_STYLES[others.index(policy) % len(OTHER_STYLES)]


def _line(policy: str, shown: Shown) -> dict[str, Any]:
    colour, dashes = _style(policy, shown)
    return {"color": colour, "linestyle": dashes, "label": policy}


def _legend(figure: Figure, shown: Shown) -> None:
    """One legend above the axes, so that it never hides a point."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **_line(one.policy, shown)) for one in shown.series]
    figure.legend(handles=lines, loc="outside upper left", ncols=LEGEND_COLUMNS)


def _targets(axes: Axes, on: Literal["x", "y"], values_s: Iterable[float], scale: Scale) -> None:
    """Mark the most common targets with a labelled line across the axis they are measured on."""
    line: dict[str, Any] = {"color": TARGET, "linewidth": 1.2, "linestyle": ":", "zorder": 1.5}
    text: dict[str, Any] = {"color": TARGET, "fontsize": 10, "textcoords": "offset points"}
    for value_s, _ in Counter(values_s).most_common(TARGETS_SHOWN_MAX):
        value = value_s * scale.per_s
        said = f"target {value:g} {scale.unit}"
        if on == "x":
            axes.axvline(value, **line)
            above = (value, 1.0)
            axes.annotate(
                said, above, (0, 3), xycoords=("data", "axes fraction"), ha="center", **text
            )
        else:
            axes.axhline(value, **line)
            beside = (1.0, value)
            axes.annotate(
                said, beside, (4, 0), xycoords=("axes fraction", "data"), va="center", **text
            )


def plain_ticks(axis: Axis) -> None:
    """Write 0.1, 1, 10 instead of powers on a logarithmic axis, also where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    few = high < 30 * low
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _thinned(count: int) -> list[int]:
    """Return the indices to draw of `count` points in order: all, or some with both ends."""
    if count <= CURVE_POINTS_MAX:
        return list(range(count))
    last = CURVE_POINTS_MAX - 1
    return [round(at * (count - 1) / last) for at in range(CURVE_POINTS_MAX)]


def _end_s(shown: Shown) -> float:
    """Return the moment of the last arrival, at least a little after 0."""
    return max((r.arrival_s for one in shown.series for r in one.records), default=0.0) or 1.0


def _of_all(shown: Shown, value: Callable[[RequestRecord], float]) -> Iterator[float]:
    return (value(record) for one in shown.series for record in one.records)
