"""Figures of the cells that `headroom` is judged by, over the seeds of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import exp, log
from statistics import fmean, stdev

from headroom_cells import CALM_QUEUE_P99_S, CELLS, Outcome

OURS, STATIC, PAPER = "headroom", "least-loaded", "kairos-paper"
RIVALS = (STATIC, PAPER, "kairos-adapted", "dynamo-prefill-load", "least-ttft", "externality")
# Two-sided 95 % points of Student's t, by number of seeds.
T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}

Table = dict[str, dict[str, list[Outcome]]]


def by_cell(outcomes: Iterable[Outcome]) -> Table:
    """Return the runs by cell, in the order of CELLS, and by policy."""
    table: Table = {cell.name: {} for cell in CELLS}
    for one in outcomes:
        table[one.cell].setdefault(one.policy, []).append(one)
    return {name: runs for name, runs in table.items() if runs}


def geometric(values: Iterable[float]) -> float:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def p95_s(runs: list[Outcome]) -> float:
    return geometric(one.result.ttft_s.p95 for one in runs)


def mean(runs: list[Outcome], of: Callable[[Outcome], float]) -> float:
    return sum(map(of, runs)) / len(runs)


def joint(runs: list[Outcome]) -> float:
    return mean(runs, lambda one: one.result.attainment.joint_99)


def late(runs: list[Outcome]) -> float:
    return mean(runs, lambda one: one.result.late_tokens_frac)


def deflected(runs: list[Outcome]) -> float:
    return mean(runs, lambda one: one.result.deflected_frac)


def queue_p99_s(runs: list[Outcome]) -> float:
    return mean(runs, lambda one: one.queue_p99_s)


def is_calm(runs: dict[str, list[Outcome]]) -> bool:
    """Return whether hardly anybody waits in the cell under a policy that never deflects."""
    return queue_p99_s(runs[STATIC]) <= CALM_QUEUE_P99_S


def nearly_calm(table: Table) -> str:
    """Return, in words, how the congested cell with the shortest queue would fare as a calm one."""
    name = min(
        (name for name, runs in table.items() if not is_calm(runs)),
        key=lambda name: queue_p99_s(table[name][STATIC]),
    )
    runs = table[name]
    return (
        f"Nearest to calm: {name}, whose queue is {queue_p99_s(runs[STATIC]):.2f} s; "
        f"{deflected(runs[OURS]):.1%} are deflected there.\n"
    )


def ratio(table: Table, cells: Iterable[str], rival: str) -> float:
    return geometric(p95_s(table[name][OURS]) / p95_s(table[name][rival]) for name in cells)


def interval(runs: dict[str, list[Outcome]], rival: str) -> str:
    """Return the 95 % interval of the p95's ratio to the rival's, from paired seeds, as text.

    Source: Student's t on the logarithms; nothing is said of a single run.
    """
    each = [
        log(ours.result.ttft_s.p95 / theirs.result.ttft_s.p95)
        for ours, theirs in zip(runs[OURS], runs[rival], strict=True)
    ]
    if len(each) < 2:
        return ""
    off = T_95[min(len(each), max(T_95))] * stdev(each) / len(each) ** 0.5
    return f" ({exp(fmean(each) - off):.2f}-{exp(fmean(each) + off):.2f})"


def best_rival(runs: dict[str, list[Outcome]]) -> tuple[str, float]:
    return min(((name, p95_s(runs[name])) for name in RIVALS), key=lambda one: one[1])
