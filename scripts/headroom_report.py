"""Measure `headroom` against its rivals with frozen settings and write docs/headroom.md.

    .venv/bin/python scripts/headroom_report.py            (make headroom-report)

The results are kept in build/headroom.json; `--from FILE` writes the page of an earlier run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from headroom_cells import AZURE_CODE, CALM_QUEUE_P99_S, CELLS, Outcome, Task
from headroom_figures import (
    OURS,
    PAPER,
    RIVALS,
    STATIC,
    Table,
    best_rival,
    by_cell,
    deflected,
    geometric,
    interval,
    is_calm,
    joint,
    late,
    nearly_calm,
    p95_s,
    queue_p99_s,
    ratio,
)

from spillway.sim.farm import Processes

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "docs" / "headroom.md", ROOT / "docs" / "figures" / "headroom.svg"
ABLATIONS = (
    "headroom:hold=off",
    "headroom:work_weight=0",
    "headroom:pressure=off",
    "headroom:pressure_frac=0",
    "headroom:slow_frac=0",
    "headroom:feed_decode_steps=1",
    "headroom:links=off",
    "headroom:deflections_max=1",
    "headroom:objective=tail-ttft",
    "headroom:objective=protect-tbt",
)
ABLATED_CELLS = (
    "burst, 16/s",
    "TBT target 20 ms",
    "4k in, 60 out, 5.5/s",
    "one link of 1.25 GB/s, bursts",
    "burst, 4/s",
    "chat, 60/s",
)
SEEDS = tuple(range(101, 109))  # `--seeds` takes others
BURST_GROUP = "long-tail burst"
CALM_DEFLECTED_MAX_FRAC = 0.01
TIE_FRAC = 0.01  # a p95 this close is the same: it moves more from seed to seed

# Why headroom is behind where it is. A losing cell without a reason is shown as not explained.
LONG_PROMPTS = (
    "All prompts are long here. Serving the shorter ones first puts the longest back: it buys the "
    "median and the attainment with the tail. On seeds 1 to 6 `headroom` is ahead here "
    "(docs/decisions/009)."
)
LIGHT = (
    "Light traffic: `least-ttft` deflects nearly all prompts, whenever that is sooner, `headroom` "
    "under pressure and beyond `slow_frac`. `objective=tail-ttft` is that choice."
)
REASONS = {
    "Azure code, 600-840 s": LIGHT,
    "4k in, 60 out, 5.5/s": LONG_PROMPTS,
    "4k in, 250 out, 5/s": LONG_PROMPTS,
    "links of 3 GB/s": LONG_PROMPTS,
    "burst, 4/s": LIGHT,
    "burst, 2/s": LIGHT + " It is on the edge of calm: on seeds 101 to 104 alone its queue is "
    "0.08 s.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the cells, or read an earlier run, and write the page and its figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--from", dest="source", type=Path, help="results of an earlier run")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "headroom.json")
    options = parser.parse_args(arguments)
    if options.source:
        outcomes = msgspec.json.decode(options.source.read_bytes(), type=list[Outcome])
    else:
        outcomes = measure(options.seeds, options.jobs)
        options.out.parent.mkdir(exist_ok=True)
        options.out.write_bytes(msgspec.json.encode(outcomes))
    table = by_cell(outcomes)
    PAGE.write_text(page(table), encoding="utf-8")
    draw(table)
    print(f"wrote {PAGE.relative_to(ROOT)} and {FIGURE.relative_to(ROOT)}")
    return 0


def measure(seeds: Sequence[int], jobs: int) -> list[Outcome]:
    """Return every run, in an order that does not depend on the processes."""
    tasks = []
    for at, cell in enumerate(CELLS):
        if cell.is_trace and not AZURE_CODE.exists():
            print(f"left out, the trace is not there: {cell.name}", file=sys.stderr)
            continue
        policies = (OURS, *RIVALS, *(ABLATIONS if cell.name in ABLATED_CELLS else ()))
        drawn = seeds[:1] if cell.is_trace else seeds  # a trace has no draws
        tasks += [Task(at, policy, seed) for policy in policies for seed in drawn]
    outcomes = []
    for outcome in Processes(jobs).run(tasks):
        outcomes.append(outcome)
        print(f"\r{len(outcomes)} of {len(tasks)} runs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return sorted(outcomes, key=lambda one: (one.cell, one.policy, one.seed))


# --- the page ------------------------------------------------------------------------------------


def page(table: Table) -> str:
    """Return the whole of docs/headroom.md."""
    groups = {cell.name: cell.group for cell in CELLS}
    congested = [name for name, runs in table.items() if not is_calm(runs)]
    seeds = sorted({one.seed for runs in table.values() for one in runs[OURS]})
    parts = [
        INTRODUCTION.format(
            cells=len(table),
            rivals=len(RIVALS),
            seeds=", ".join(map(str, seeds)),
            calm_s=CALM_QUEUE_P99_S,
        ),
        "## Against the goals\n\n" + _goals(table, congested, groups),
        nearly_calm(table) + "\n![p95 TTFT as a share of least-loaded's](figures/headroom.svg)\n",
        "## p95 TTFT, seconds\n\n" + _p95_table(table),
        "## What it costs\n\n" + _cost_table(table),
        "## Where it loses\n\n" + _losses(table, congested),
        "## Without its parts, and with other objectives\n\n" + _ablations(table),
        NOTES,
    ]
    return "\n".join(parts)


def _goals(table: Table, congested: list[str], groups: dict[str, str]) -> str:
    bursts = [name for name in congested if groups[name] == BURST_GROUP]
    rows = _speed_goals(table, congested, bursts) + _cost_goals(table, congested)
    return _grid(("figure", "goal", "measured", "met"), rows)


def _met(is_met: bool) -> str:
    return "yes" if is_met else "**no**"


def _speed_goals(
    table: Table, congested: list[str], bursts: list[str]
) -> list[tuple[str, str, str, str]]:
    behind = {name: p95_s(table[name][OURS]) / best_rival(table[name])[1] for name in congested}
    won = sum(share <= 1 + TIE_FRAC for share in behind.values())
    outright = sum(share <= 1 for share in behind.values())
    told = f"{won} of {len(congested)} ({won / len(congested):.0%}), {outright} outright"
    rows = [
        (
            "p95 TTFT at or below every rival's (1 % is a tie), share of congested cells",
            "≥ 90 %",
            told,
            _met(won >= 0.9 * len(congested)),
        )
    ]
    for rival, goal in ((PAPER, 0.60), (STATIC, 0.20)):
        share = ratio(table, bursts, rival)
        aim = f"≤ {goal:.2f}"
        rows += [
            (
                f"p95 TTFT over `{rival}`'s, long-tail bursts",
                aim,
                f"{share:.2f}",
                _met(share <= goal),
            ),
            (
                f"p95 TTFT over `{rival}`'s, all congested cells",
                "",
                f"{ratio(table, congested, rival):.2f}",
                "",
            ),
        ]
    return rows


def _cost_goals(table: Table, congested: list[str]) -> list[tuple[str, str, str, str]]:
    calm = [name for name in table if name not in congested]
    regrets = {
        name: max(joint(runs[rival]) for rival in RIVALS) - joint(runs[OURS])
        for name, runs in table.items()
    }
    worst = max(regrets, key=lambda name: regrets[name])
    gain = sum(joint(table[n][OURS]) - joint(table[n][PAPER]) for n in congested) / len(congested)
    lates = {name: late(runs[OURS]) for name, runs in table.items()}
    latest = max(lates, key=lambda name: lates[name])
    busiest = max(calm, key=lambda name: deflected(table[name][OURS]))
    slowest = max(calm, key=lambda name: ratio(table, [name], STATIC))
    return [
        (
            "joint attainment behind the best rival, worst cell",
            "≤ 0.5 points",
            f"{100 * regrets[worst]:.1f} points ({worst})",
            _met(regrets[worst] <= 0.005),
        ),
        (
            "joint attainment above `kairos-paper`, mean of congested cells",
            "≥ 3 points",
            f"{100 * gain:.1f} points",
            _met(gain >= 0.03),
        ),
        (
            "late tokens, worst cell",
            "≤ 0.5 %",
            f"{lates[latest]:.2%} ({latest})",
            _met(lates[latest] <= 0.005),
        ),
        (
            "deflected in calm cells, worst cell",
            "< 1 %",
            f"{deflected(table[busiest][OURS]):.2%} ({busiest})",
            _met(deflected(table[busiest][OURS]) < CALM_DEFLECTED_MAX_FRAC),
        ),
        (
            "p95 TTFT over `least-loaded`'s in calm cells, worst cell",
            "≤ 1.00",
            f"{ratio(table, [slowest], STATIC):.2f} ({slowest})",
            _met(ratio(table, [slowest], STATIC) <= 1 + TIE_FRAC),
        ),
    ]


def _p95_table(table: Table) -> str:
    rows = []
    for name, runs in table.items():
        figures = [f"{p95_s(runs[policy]):.2f}" for policy in (OURS, *RIVALS)]
        wait = f"{queue_p99_s(runs[STATIC]):.2f}{', calm' if is_calm(runs) else ''}"
        mine = p95_s(runs[OURS]) / p95_s(runs[STATIC])
        rows.append((name, *figures, f"{mine:.2f}{interval(runs, STATIC)}", wait))
    heads = (
        "cell",
        *(f"`{policy}`" for policy in (OURS, *RIVALS)),
        "over `least-loaded`",
        "its queue",
    )
    return _grid(heads, rows)


def _cost_table(table: Table) -> str:
    rows = []
    for name, runs in table.items():
        ours = runs[OURS]
        tail_s = geometric(one.result.ttft_s.p99 for one in ours)
        their_tail_s = min(geometric(o.result.ttft_s.p99 for o in runs[r]) for r in RIVALS)
        best = max(RIVALS, key=lambda rival: joint(runs[rival]))
        rows.append(
            (
                name,
                f"{joint(ours):.1%}",
                f"{joint(runs[best]):.1%} (`{best}`)",
                f"{joint(runs[PAPER]):.1%}",
                f"{late(ours):.2%}",
                f"{deflected(ours):.1%}",
                f"{tail_s:.2f}",
                f"{their_tail_s:.2f}",
            )
        )
    heads = (
        "cell",
        "joint",
        "best rival's",
        f"`{PAPER}`'s",
        "late tokens",
        "deflected",
        "p99 TTFT, s",
        "best rival's",
    )
    return _grid(heads, rows)


def _losses(table: Table, congested: list[str]) -> str:
    lines = []
    for name in congested:
        ours, (rival, theirs) = p95_s(table[name][OURS]), best_rival(table[name])
        if ours > (1 + TIE_FRAC) * theirs:
            why = REASONS.get(name, "Not explained.")
            told = f"p95 {ours:.2f} s, `{rival}` {theirs:.2f} s"
            told += f", ratio {ours / theirs:.2f}{interval(table[name], rival)}"
            lines.append(f"- **{name}**: {told}. {why}")
    for name, runs in table.items():
        if name not in congested and deflected(runs[OURS]) >= CALM_DEFLECTED_MAX_FRAC:
            why = REASONS.get(name, "Not explained.")
            lines.append(f"- **{name}**: {deflected(runs[OURS]):.1%} are deflected. {why}")
        best = max(RIVALS, key=lambda one: joint(runs[one]))
        behind = joint(runs[best]) - joint(runs[OURS])
        if behind > 0.005:
            lines.append(
                f"- **{name}**: joint attainment {100 * behind:.1f} points behind `{best}`."
            )
    return "\n".join(lines or ["In no cell, by these measures."]) + "\n"


def _ablations(table: Table) -> str:
    rows = []
    for policy in (OURS, *ABLATIONS):
        cells = [table[name][policy] for name in ABLATED_CELLS]
        figures = [
            f"{p95_s(runs):.2f} s, {joint(runs):.1%}, {deflected(runs):.0%}" for runs in cells
        ]
        rows.append((f"`{policy}`", *figures))
    told = "p95 TTFT, joint attainment, and share deflected.\n\n"
    return told + _grid(("policy", *ABLATED_CELLS), rows)


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


# --- the figure ----------------------------------------------------------------------------------


def draw(table: Table) -> None:
    """Draw each policy's p95 TTFT as a share of the static policy's, a line per cell."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "headroom"
    shown = {
        PAPER: ("#9a9a9a", "o"),
        "dynamo-prefill-load": ("#c98a2b", "s"),
        "least-ttft": ("#3b7dd8", "^"),
        OURS: ("#c0392b", "D"),
    }
    names = list(reversed(table))
    figure, axes = plt.subplots(figsize=(8.5, 0.27 * len(names) + 1.2))
    for policy, (colour, mark) in shown.items():
        shares = [p95_s(table[name][policy]) / p95_s(table[name][STATIC]) for name in names]
        axes.scatter(shares, range(len(names)), label=policy, color=colour, marker=mark, s=26)
    axes.axvline(1.0, color="#cccccc", zorder=0)
    axes.set_xscale("log")
    ticks = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(axis="y", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("p95 TTFT as a share of least-loaded's (left is better)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.3, 1.0), ncols=4, frameon=False, fontsize=8)
    figure.savefig(FIGURE, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


INTRODUCTION = """\
# How `headroom` fares

Written by `make headroom-report` (`scripts/headroom_report.py`): {cells} simulated cells, {rivals}
rivals, the same arrivals for every policy, settings frozen before these seeds ({seeds}) were run.
Tuning used seeds 1 to 6 and one of the trace windows. p95 values are geometric means over the
seeds; behind a ratio stands its 95 % interval over paired seeds (a trace has one order of arrival
and none). What is promised, and what not, is in [guarantee.md](guarantee.md); what was tried and
given up in [decisions/](decisions/).

*calm*: under `least-loaded`, which never deflects, 99 % of the requests wait at most {calm_s} s (a
tenth of the TTFT target) for the first chunk of their prompt (column *its queue*: that wait, the
mean over the seeds). All other cells are congested.

*joint*: share of the requests that met their TTFT target and had at least 99 % of their tokens on
time.
"""

NOTES = """\
## How to read this

- The nodes are simulated, and follow the step law that the policies believe but for the cells of
  model error. So few seeds do not settle differences of a few percent.
- Serving short prompts first buys its p95 with the longest prompts: compare the p99 columns.
  `work_weight=0` serves by deadline alone.
- The nodes size the chunks of every policy but `kairos-paper`, whose schedules are literal. All
  policies predict with what the nodes report of their step times.
- The settings were compared with targets of 1 s and 60 ms; other targets may want other weights.
"""

if __name__ == "__main__":
    sys.exit(main())
