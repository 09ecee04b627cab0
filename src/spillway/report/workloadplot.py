"""The picture of a workload: what arrives when, and how long prompts and outputs are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from spillway.report.plots import INK, LOAD, new_figure, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 240
LENGTH_BINS_PER_DECADE = 12
PROMPT, OUTPUT = "#0072B2", "#E69F00"


class ShownWorkload(NamedTuple):
    """Requests in order of arrival, a value each."""

    title: str
    arrivals_s: Sequence[float]
    prompts_tokens: Sequence[int]
    outputs_tokens: Sequence[int]


def workload_figure(shown: ShownWorkload) -> Figure:
    """Requests and prompt tokens per second over time; prompt and output lengths."""
    figure = new_figure(7.0)
    axes = figure.subplot_mosaic([["rate", "rate"], ["tokens", "tokens"], ["prompt", "output"]])
    start_s, end_s = shown.arrivals_s[0], shown.arrivals_s[-1]
    width_s = max((end_s - start_s) / BINS, 1e-3)
    _draw_rate(axes["rate"], shown, width_s, [1.0] * len(shown.arrivals_s))
    axes["rate"].set_title(f"requests per second, means over {width_s:.3g} s")
    _draw_rate(axes["tokens"], shown, width_s, shown.prompts_tokens)
    axes["tokens"].set_title("prompt tokens per second")
    axes["tokens"].set_xlabel("time (s)")
    _draw_lengths(axes["prompt"], shown.prompts_tokens, PROMPT)
    axes["prompt"].set_title("prompt lengths")
    _draw_lengths(axes["output"], shown.outputs_tokens, OUTPUT)
    axes["output"].set_title("output lengths")
    figure.suptitle(shown.title, x=0.01, ha="left", color=INK, fontsize=11)
    return figure


def _draw_rate(axes: Axes, shown: ShownWorkload, width_s: float, amounts: Sequence[float]) -> None:
    start_s = shown.arrivals_s[0]
    sums = [0.0] * (BINS + 1)
    for arrival_s, amount in zip(shown.arrivals_s, amounts, strict=True):
        sums[int((arrival_s - start_s) / width_s)] += amount
    edges_s = [start_s + at * width_s for at in range(BINS + 1)]
    heights = [total / width_s for total in sums[:BINS]]
    heights[-1] += sums[BINS] / width_s  # the last arrival stands on the edge
    axes.stairs(heights, edges_s, fill=True, color=LOAD)
    mean = sum(sums) / (width_s * BINS)
    axes.axhline(mean, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
    axes.annotate(
        f"mean {mean:,.3g}" if mean < 1000 else f"mean {mean:,.0f}",
        (1.0, mean),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        fontsize=9,
        color=INK,
    )
    axes.set_xlim(start_s, edges_s[-1])
    axes.set_ylim(bottom=0.0)


def _draw_lengths(axes: Axes, tokens: Sequence[int], colour: str) -> None:
    """Shares of requests in bins that are equally wide on the logarithmic axis."""
    from math import ceil, floor, log10

    low, high = floor(log10(min(tokens))), max(ceil(log10(max(tokens))), 1)
    low = min(low, high - 1)
    edges = [
        10 ** (low + at / LENGTH_BINS_PER_DECADE)
        for at in range((high - low) * LENGTH_BINS_PER_DECADE + 1)
    ]
    weights = [100 / len(tokens)] * len(tokens)
    axes.hist(tokens, bins=edges, weights=weights, color=colour)
    axes.set_xscale("log")
    axes.set_xlim(min(tokens) / 1.2, max(tokens) * 1.2 + 1)
    axes.set_xlabel("tokens (logarithmic)")
    axes.set_ylabel("% of requests")
    plain_ticks(axes.xaxis)
