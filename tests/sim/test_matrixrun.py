"""A matrix carried out: whatever computes it, and however often it was broken off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from spillway.core.errors import ConfigError
from spillway.sim.farm import OneProcess, Processes, RayCluster
from spillway.sim.matrix import Plan, make_plan
from spillway.sim.matrixrun import finished, journal_path, run_matrix
from spillway.wire.sweepfile import Sweep
from sweep_samples import TINY, tiny

pytest.importorskip("pyarrow")
pytestmark = pytest.mark.slow

T = TypeVar("T")


class Crash(Exception):
    """The machine went down."""


class Unreliable:
    """Computes backwards, as workers of different speed may, and crashes after so many tasks."""

    def __init__(self, tasks_max: int = 1_000_000) -> None:
        self.left = tasks_max
        self.done = 0

    def run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        for task in reversed(list(tasks)):
            if not self.left:
                raise Crash
            self.left -= 1
            self.done += 1
            yield task()


def ignore(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return make_plan(tiny(tmp_path), tmp_path)


@pytest.fixture
def expected(plan: Plan, tmp_path: Path) -> tuple[Sweep, bytes]:
    path = tmp_path / "expected.parquet"
    return run_matrix(plan, path, OneProcess(), ignore), path.read_bytes()


def test_rows_are_complete_and_in_order(plan: Plan, expected: tuple[Sweep, bytes]) -> None:
    sweep, _ = expected
    assert [cell.key for cell in sweep.cells] == plan.keys
    (capacity,) = sweep.capacities
    assert capacity.attained_frac >= 0.9
    for cell in sweep.cells:
        assert cell.rate_per_s == pytest.approx(cell.load_frac * capacity.capacity_per_s)
        assert cell.requests_arrived == cell.requests_finished > 10
    static = [cell for cell in sweep.cells if cell.policy == "least-loaded"]
    assert all(cell.deflected_frac == 0 for cell in static)


def test_two_processes_give_the_same_bytes(
    plan: Plan, expected: tuple[Sweep, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "two.parquet"
    run_matrix(plan, path, Processes(2), ignore)
    assert path.read_bytes() == expected[1]


def test_ray_gives_the_same_bytes(
    plan: Plan, expected: tuple[Sweep, bytes], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="ray is not installed: make test-ray")
    path = tmp_path / "ray.parquet"
    cluster = RayCluster("local")
    try:
        run_matrix(plan, path, cluster, ignore)
    finally:
        cluster.close()
    assert path.read_bytes() == expected[1]


def test_a_sweep_that_was_broken_off_goes_on_and_ends_the_same(
    plan: Plan, expected: tuple[Sweep, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "broken.parquet"
    with pytest.raises(Crash):
        run_matrix(plan, path, Unreliable(3), ignore)
    assert finished(plan, path) is None
    assert journal_path(path).exists()
    rest = Unreliable()
    run_matrix(plan, path, rest, ignore)
    assert rest.done == 5 - 3, "one capacity and four groups of runs, three of them kept"
    assert path.read_bytes() == expected[1]
    assert not journal_path(path).exists()


def test_results_of_another_matrix_are_not_mixed_in(
    expected: tuple[Sweep, bytes], tmp_path: Path
) -> None:
    other = make_plan(tiny(tmp_path, TINY.replace("1.2", "1.1")), tmp_path)
    with pytest.raises(ConfigError, match="another matrix"):
        finished(other, tmp_path / "expected.parquet")


def test_targets_out_of_reach_are_named(tmp_path: Path) -> None:
    plan = make_plan(tiny(tmp_path, TINY.replace("0.06", "0.001")), tmp_path)
    with pytest.raises(ConfigError, match="burst / usual / 2p2d / exact: even at"):
        run_matrix(plan, tmp_path / "x.parquet", OneProcess(), ignore)
