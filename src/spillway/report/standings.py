"""How the policies of a sweep stand: attainment by cell, regret against the best, who loses where.

A cell is everything but policy and seed; a policy's score in it is the mean over seeds of the share
of requests that met both targets (99 % of their gaps in time). Regret is what the best policy of
the cell scored more. All policies saw the same requests, so differences are paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from typing import NamedTuple

from spillway.wire.cells import CellResult

STATIC_POLICIES = ("least-loaded", "power-of-two", "round-robin")
AS_GOOD_FRAC = 0.01  # closer than this to the best counts as being as good


class CellName(NamedTuple):
    """What a cell is, by the names of the matrix."""

    workload: str
    load_frac: float
    target: str
    cluster: str
    fidelity: str

    def text(self, axes: Axes) -> str:
        """Return the cell in words, without the axes that have one value only."""
        words = [self.workload, f"load {self.load_frac:g}"]
        for value, axis in ((self.target, axes.targets), (self.fidelity, axes.fidelities)):
            if len(axis) > 1:
                words.append(value)
        if len(axes.clusters) > 1:
            words.append(self.cluster)
        return ", ".join(words)


class Axes(NamedTuple):
    """The values of each axis, in the order of the matrix."""

    workloads: tuple[str, ...]
    loads: tuple[float, ...]
    targets: tuple[str, ...]
    clusters: tuple[str, ...]
    fidelities: tuple[str, ...]
    policies: tuple[str, ...]
    seeds: tuple[int, ...]


class Cell(NamedTuple):
    """One cell: the runs of every policy, by seed."""

    name: CellName
    runs: Mapping[str, Sequence[CellResult]]

    def score_frac(self, policy: str) -> float:
        """Return a policy's mean attainment."""
        return mean(run.joint_99_frac for run in self.runs[policy])

    def best(self) -> str:
        """Return the policy with the highest score; of equals the first of the matrix."""
        return max(self.runs, key=self.score_frac)

    def best_static(self) -> str | None:
        """Return the best of the policies that never deflect, None when none was run."""
        known = [policy for policy in STATIC_POLICIES if policy in self.runs]
        return max(known, key=self.score_frac) if known else None

    def regret_frac(self, policy: str) -> float:
        """Return what the best policy scored more."""
        return self.score_frac(self.best()) - self.score_frac(policy)

    def regret_range_frac(self, policy: str) -> tuple[float, float]:
        """Return the least and the most that the best policy scored more on one seed."""
        pairs = zip(self.runs[self.best()], self.runs[policy], strict=True)
        gaps = [best.joint_99_frac - own.joint_99_frac for best, own in pairs]
        return min(gaps), max(gaps)


class Standing(NamedTuple):
    """One policy over all cells.

    worst: the cell of its largest regret.   as_good_count: cells where it is as good as the best.
    ttft_factor: geometric mean over cells of its p95 TTFT over the best static policy's.
    """

    policy: str
    score_frac: float
    regret_mean_frac: float
    regret_max_frac: float
    worst: Cell
    as_good_count: int
    ttft_factor: float
    late_frac: float
    deflected_frac: float


def axes_of(results: Sequence[CellResult]) -> Axes:
    """Return the values of each axis in order of appearance, which is that of the matrix."""
    return Axes(
        tuple(dict.fromkeys(one.workload for one in results)),
        tuple(dict.fromkeys(one.load_frac for one in results)),
        tuple(dict.fromkeys(one.target for one in results)),
        tuple(dict.fromkeys(one.cluster for one in results)),
        tuple(dict.fromkeys(one.fidelity for one in results)),
        tuple(dict.fromkeys(one.policy for one in results)),
        tuple(dict.fromkeys(one.seed for one in results)),
    )


def cells_of(results: Sequence[CellResult]) -> list[Cell]:
    """Return the cells in the order of the results."""
    found: dict[CellName, dict[str, list[CellResult]]] = {}
    for one in results:
        name = CellName(one.workload, one.load_frac, one.target, one.cluster, one.fidelity)
        found.setdefault(name, {}).setdefault(one.policy, []).append(one)
    return [
        Cell(name, {policy: sorted(runs, key=_seed) for policy, runs in by_policy.items()})
        for name, by_policy in found.items()
    ]


def standings(cells: Sequence[Cell], policies: Sequence[str]) -> list[Standing]:
    """Return every policy's standing, the smallest worst-cell regret first."""
    return sorted(
        (_standing(cells, policy) for policy in policies),
        key=lambda one: (one.regret_max_frac, one.regret_mean_frac),
    )


def _standing(cells: Sequence[Cell], policy: str) -> Standing:
    regrets = [cell.regret_frac(policy) for cell in cells]
    worst = cells[max(range(len(cells)), key=regrets.__getitem__)]
    runs = [run for cell in cells for run in cell.runs[policy]]
    return Standing(
        policy=policy,
        score_frac=mean(cell.score_frac(policy) for cell in cells),
        regret_mean_frac=mean(regrets),
        regret_max_frac=max(regrets),
        worst=worst,
        as_good_count=sum(regret < AS_GOOD_FRAC for regret in regrets),
        ttft_factor=ttft_factor(cells, policy),
        late_frac=mean(run.late_tokens_frac for run in runs),
        deflected_frac=mean(run.deflected_frac for run in runs),
    )


def ttft_factor(cells: Iterable[Cell], policy: str) -> float:
    """Return the geometric mean of p95 TTFT over the best static policy's, 0 without one."""
    logs = []
    for cell in cells:
        static = cell.best_static()
        if static is None:
            continue
        for own, base in zip(cell.runs[policy], cell.runs[static], strict=True):
            if own.ttft_p95_s > 0 and base.ttft_p95_s > 0:
                logs.append(log(own.ttft_p95_s / base.ttft_p95_s))
    return exp(mean(logs)) if logs else 0.0


def focus_cell(cells: Sequence[Cell]) -> Cell:
    """Return the cell where the best static policy is furthest behind: there deflection matters.

    Without a static policy, the cell in which the policies differ most.
    """

    def behind_frac(cell: Cell) -> float:
        static = cell.best_static()
        return max(map(cell.regret_frac, [static] if static else cell.runs))

    return max(cells, key=behind_frac)


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean, 0 of nothing."""
    kept = list(values)
    return sum(kept) / len(kept) if kept else 0.0


def _seed(one: CellResult) -> int:
    return one.seed
