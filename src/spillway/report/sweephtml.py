"""The page of a sweep: who stands where, who loses where, and figures to look closer.

Like the page of a comparison it is one file that needs nothing else. Every sentence is made from
the rows; nothing is known beforehand of who wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from spillway.core.errors import ConfigError
from spillway.report import sweepplots
from spillway.report.gantt import gantt
from spillway.report.grid import Cell as Text
from spillway.report.grid import Grid
from spillway.report.grid import html as table
from spillway.report.html import PARTS, bullets, document, figure, terms, warning
from spillway.report.plots import inline_svg, write_figure
from spillway.report.regret import points, regret_table, where_it_loses
from spillway.report.standings import STATIC_POLICIES, Standing, mean, standings
from spillway.report.sweepplots import SweepShown, sweep_shown
from spillway.report.tables import NOTHING, seconds
from spillway.wire.cells import CellResult
from spillway.wire.sweepfile import Sweep
from spillway.wire.timeline import Timeline

PAGE, FIGURES = "index.html", "figures"
FORMATS = ("svg", "png")


class SweepFigure(NamedTuple):
    """One figure of the page. of_focus: it looks at one cell only."""

    name: str
    title: str
    caption: str
    plot: Callable[[SweepShown], Any]
    of_focus: bool = False


FIRST_FIGURES = (
    SweepFigure(
        "attainment-by-load",
        "Attainment against load",
        "Share of the requests that met both targets, mean over targets, clusters and seeds. "
        "A load of 1 is what a cluster without deflection carries at the wanted attainment.",
        sweepplots.attainment_by_load,
    ),
    SweepFigure(
        "attainment-map",
        "Every policy, workload and load",
        "The same shares in per cent, for all policies; darker is lower. Order: smallest "
        "worst-cell regret first.",
        sweepplots.attainment_map,
    ),
)
MORE_FIGURES = (
    SweepFigure(
        "ttft-parts",
        "Where the time of a slow first token went",
        "Means over the requests between the 93rd and 97th percentile of TTFT, and over seeds.",
        sweepplots.parts_by_policy,
        of_focus=True,
    ),
    SweepFigure(
        "ttft",
        "Time to first token",
        "Share of the requests with a first token within a time; further left is better. Line: "
        "median over seeds; band, where drawn: all seeds.",
        sweepplots.ttft_curves,
        of_focus=True,
    ),
    SweepFigure(
        "gaps",
        "Gaps between tokens",
        "Share of all token gaps at least so long; further left and lower is better. Line: median "
        "over seeds; band, where drawn: all seeds.",
        sweepplots.gap_curves,
        of_focus=True,
    ),
    SweepFigure(
        "deflected-by-length",
        "Which prompts are deflected",
        "Above: share deflected by prompt length, over all cells; ranges with fewer than "
        f"{sweepplots.FEW_REQUESTS} requests are left out. Below: how common the lengths are.",
        sweepplots.deflected_by_length,
    ),
)
GANTT_TITLE = "What the nodes did around the worst burst"


def write_sweep_page(folder: Path, sweep: Sweep, timelines: Sequence[Timeline] = ()) -> Path:
    """Write the page and its figures as SVG and PNG; return the page's path.

    timelines: runs of the focus cell on the same requests, for the Gantt view; none leaves it out.
    Raises ConfigError when a file cannot be written or matplotlib is not installed.
    """
    shown = sweep_shown(sweep.cells)
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for ending in FORMATS:
            for one in (*FIRST_FIGURES, *MORE_FIGURES):
                write_figure(folder / FIGURES / f"{one.name}.{ending}", one.plot, shown)
            if timelines:
                write_figure(folder / FIGURES / f"gantt.{ending}", gantt, timelines)
        page = folder / PAGE
        page.write_text(sweep_page(sweep, shown, timelines), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the report: {error.strerror}") from None
    return page


def sweep_page(sweep: Sweep, shown: SweepShown, timelines: Sequence[Timeline]) -> str:
    """Return the page. The same input gives the same text."""
    ranked = standings(shown.cells, shown.axes.policies)
    count = len(shown.cells)
    focus = shown.focus.name.text(shown.axes)
    losses = [(one.policy, where_it_loses(one, shown.axes, count)) for one in ranked]
    parts = [
        f"<h1>{len(ranked)} policies in {count} cells</h1>",
        f'<p class="lead">{escape(_lead(sweep, shown))}</p>',
        warning([*sweep.head.notes, *_doubts(sweep.cells), *_differing(shown, timelines)]),
        bullets("findings", findings(ranked, shown)),
        "<h2>Standings</h2>",
        f'<div class="scroll">{table(regret_table(ranked, count))}</div>',
        '<p class="small">A cell is a workload at a load, with targets, on a cluster. Regret is '
        "how much more of the requests met both targets under the best policy of the cell, in "
        "percentage points. As good as best: less than one point behind. p95 TTFT: against the "
        "best policy that never deflects, in the same cell and seed, geometric mean.</p>",
        *(_figure(one, shown) for one in FIRST_FIGURES),
        "<h2>Where each policy loses</h2>",
        terms("losses", losses),
        "<h2>A closer look</h2>",
        f"<p>The figures marked as of one cell show <strong>{escape(focus)}</strong>, the cell "
        "in which the best policy that never deflects is furthest behind the best.</p>",
        *(_figure(one, shown, focus) for one in MORE_FIGURES),
        _gantt(timelines, focus),
        "<h2>What prefill contributes to a slow first token</h2>",
        f'<div class="scroll">{table(share_table(shown))}</div>',
        '<p class="small">Parts of the p95 TTFT under the best policy that never deflects, by '
        "workload and load; means over targets, clusters and seeds.</p>",
        "<h2>Measured capacities</h2>",
        f'<div class="scroll">{table(capacity_table(sweep))}</div>',
        "<h2>What the words mean</h2>",
        terms("words", _words()),
        "<h2>What was run</h2>",
        terms("run", _settings(sweep)),
        f"<footer>Made by spillway {escape(sweep.head.spillway_version)}. "
        "This file is complete: it loads nothing.</footer>",
    ]
    return document("Spillway · sweep", parts)


def findings(ranked: Sequence[Standing], shown: SweepShown) -> list[str]:
    """Return what the rows say first of all, in sentences that hold for any outcome."""
    first = ranked[0]
    highest = max(ranked, key=lambda one: one.score_frac)
    told = [
        f"Smallest regret in its worst cell: {first.policy}, {points(first.regret_max_frac)} "
        f"points ({first.worst.name.text(shown.axes)}, behind {first.worst.best()})."
        if first.regret_max_frac > 0
        else f"{first.policy} is the best in every cell, or as good as the best.",
        f"Highest attainment on average: {highest.policy}, {points(highest.score_frac)} % of the "
        f"requests met both targets.",
    ]
    for one in ranked:
        if one.policy not in sweepplots.SHOWN_ALWAYS:
            continue
        ratio = (
            f"; p95 TTFT {one.ttft_factor:.2f} times the best static's" if one.ttft_factor else ""
        )
        told.append(
            f"{one.policy}: both targets met by {points(one.score_frac)} % on average, "
            f"{points(one.regret_max_frac)} points behind the best in its worst cell{ratio}; "
            f"{points(one.deflected_frac)} % deflected."
        )
    return told


def share_table(shown: SweepShown) -> Grid:
    """Return the parts of the p95 TTFT of the best static policy, by workload and load."""
    head = ("workload", "load", "p95\nTTFT s", *(f"{name}\n%" for name, _ in PARTS))
    rows = []
    for workload in shown.axes.workloads:
        for load_frac in shown.axes.loads:
            runs: list[CellResult] = []
            for cell in shown.cells:
                static = cell.best_static()
                if static and (cell.name.workload, cell.name.load_frac) == (workload, load_frac):
                    runs += cell.runs[static]
            if not runs:
                continue
            parts_s = {name: mean(run.parts_s[name] for run in runs) for name in runs[0].parts_s}
            total_s = sum(parts_s.values()) or 1.0
            figures = [f"{part_s / total_s * 100:.0f}" for part_s in parts_s.values()]
            texts = (
                workload,
                f"{load_frac:g}",
                seconds(mean(r.ttft_p95_s for r in runs)),
                *figures,
            )
            rows.append(tuple(map(Text, texts)))
    return Grid(head, tuple(rows), left=1)


def capacity_table(sweep: Sweep) -> Grid:
    """Return what a load of 1 is in each place."""
    head = ("workload", "targets", "cluster", "fidelity", "static\npolicy", "requests\n/s", "met %")
    rows = tuple(
        tuple(
            map(
                Text,
                (
                    one.workload,
                    one.target,
                    one.cluster,
                    one.fidelity,
                    one.policy,
                    f"{one.capacity_per_s:.2f}",
                    points(one.attained_frac),
                ),
            )
        )
        for one in sweep.capacities
    )
    return Grid(head, rows, left=5)


def _lead(sweep: Sweep, shown: SweepShown) -> str:
    axes = shown.axes
    requests = sum(one.requests_arrived for one in sweep.cells)
    return (
        f"{len(sweep.cells):,} simulated runs, {requests:,} requests: {', '.join(axes.workloads)}; "
        f"loads {', '.join(f'{load_frac:g}' for load_frac in axes.loads)}; "
        f"{_counted(axes.targets, 'set')} of targets, {_counted(axes.clusters, 'cluster')}, "
        f"{_counted(axes.seeds, 'seed')} each"
    )


def _counted(what: Sequence[object], noun: str) -> str:
    return f"{len(what)} {noun}{'' if len(what) == 1 else 's'}"


def _doubts(cells: Sequence[CellResult]) -> list[str]:
    """Return a sentence for each policy that left requests unfinished, or that failed."""
    told = []
    for policy in dict.fromkeys(one.policy for one in cells):
        runs = [one for one in cells if one.policy == policy]
        arrived = sum(one.requests_arrived for one in runs)
        unfinished = arrived - sum(one.requests_finished for one in runs)
        failures = sum(one.policy_failures for one in runs)
        if unfinished:
            told.append(f"{policy}: {unfinished:,} of {arrived:,} requests did not finish.")
        if failures:
            told.append(f"{policy}: failed on {failures:,} decisions; the fall-back decided them.")
    return told


def _differing(shown: SweepShown, timelines: Sequence[Timeline]) -> list[str]:
    """Return a sentence when a Gantt view is of a run that no longer ends as the table says."""
    known = {
        one.policy: {run.ttft_p95_s for run in shown.focus.runs.get(one.policy, ())}
        for one in timelines
    }
    changed = [one.policy for one in timelines if one.ttft_p95_s not in known[one.policy]]
    if not changed:
        return []
    return [
        f"The Gantt view was simulated for this page and differs from the table for "
        f"{', '.join(changed)}: another version of the program made the table."
    ]


def _figure(one: SweepFigure, shown: SweepShown, focus: str = "") -> str:
    caption = f"Of one cell: {focus}. {one.caption}" if one.of_focus else one.caption
    return figure(one.title, caption, inline_svg(one.plot, shown, one.name))


def _gantt(timelines: Sequence[Timeline], focus: str) -> str:
    if not timelines:
        return ""
    caption = (
        f"Of one cell: {focus}. The seconds in which most prompt tokens arrive, under each policy "
        "with the same requests. A block in a prefill node's lane is a step of prefill; an orange "
        "one in a decode node's lane is a step with a chunk of a deflected prompt, beside the "
        "streams shown in grey."
    )
    return figure(GANTT_TITLE, caption, inline_svg(gantt, timelines, "gantt"))


def _words() -> list[tuple[str, str]]:
    return [
        (
            "both targets met",
            "Share of the arrived requests whose first token came within the TTFT target and of "
            "whose token gaps at least 99 % were within the gap target.",
        ),
        (
            "load",
            "Offered requests per second over the measured capacity: the highest rate at which one "
            f"of {', '.join(STATIC_POLICIES)} met the wanted attainment, on other seeds.",
        ),
        ("static", "A policy that never deflects."),
        ("late token", "One whose gap to the token before was above its target."),
        ("deflected", "The prompt ran on a decode node, in chunks beside its streams."),
        *PARTS,
    ]


def _settings(sweep: Sweep) -> list[tuple[str, str]]:
    matrix = [(str(key), _value(value)) for key, value in sweep.head.matrix.items()]
    return [*matrix, ("digest", sweep.head.digest), ("version", sweep.head.spillway_version)]


def _value(value: Any) -> str:
    if value in (None, {}, []):
        return NOTHING
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
