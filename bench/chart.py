"""The figure of the benchmark page: ours over each peer's, cell by cell, with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot

COLOURS = ("#0072b2", "#d55e00", "#009e73")  # distinct for the colour-blind
MARKERS = ("o", "s", "^")
INCHES_PER_ROW = 0.28


def ratios_figure(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every ratio of some comparisons on one logarithmic axis. Left of 1, ours is better."""
    rows = [one for one in rows if one["ratios"]]
    peers = list(dict.fromkeys(peer for one in rows for peer in one["ratios"]))
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same file for the same results
    figure, axes = pyplot.subplots(figsize=(8.5, 1.2 + INCHES_PER_ROW * len(rows)))
    for at, peer in enumerate(peers):
        cells = [
            (place, one["ratios"][peer]) for place, one in enumerate(rows) if peer in one["ratios"]
        ]
        medians = [ratio["median"] for _place, ratio in cells]
        below = [ratio["median"] - ratio["low"] for _place, ratio in cells]
        above = [ratio["high"] - ratio["median"] for _place, ratio in cells]
        axes.errorbar(
            medians,
            [place + 0.24 * (at - (len(peers) - 1) / 2) for place, _ratio in cells],
            xerr=(below, above),
            fmt=MARKERS[at % len(MARKERS)],
            color=COLOURS[at % len(COLOURS)],
            markersize=4,
            linewidth=1,
            label=f"over {peer}",
        )
    _targets(axes, rows)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [f"{one['load']}: {one['quantity']}" for one in rows])
    axes.tick_params(labelsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    label = "ours / peer's: median of the rounds, lowest and highest; left of 1 ours takes less"
    axes.set_xlabel(label, fontsize=9)
    axes.grid(axis="x", which="both", linewidth=0.3)
    # Above the axes, where it hides no range.
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(peers) + 1)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _targets(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Mark where a target is."""
    label = "target"
    for place, one in enumerate(rows):
        for target in set(one["targets"].values()):
            axes.plot([target, target], [place - 0.4, place + 0.4], color="grey", label=label)
            label = ""
