"""Where tasks are computed makes no difference to what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from spillway.core.errors import ConfigError
from spillway.sim.farm import IN_FLIGHT_PER_WORKER, Farm, OneProcess, Processes, RayCluster


def square(number: int) -> int:
    return number * number


def fail() -> int:
    raise ConfigError("this target is out of reach")


TASKS = [partial(square, number) for number in range(20)]
SQUARES = [number * number for number in range(20)]


def test_one_process_yields_in_order_and_only_when_asked() -> None:
    results = OneProcess().run(iter([*TASKS, fail]))
    assert [next(results) for _ in TASKS] == SQUARES
    with pytest.raises(ConfigError, match="out of reach"):
        next(results)


@pytest.mark.slow
def test_processes_compute_the_same_and_hand_on_what_goes_wrong() -> None:
    assert sorted(Processes(2).run(TASKS)) == SQUARES
    with pytest.raises(ConfigError, match="out of reach"):
        list(Processes(2).run([*TASKS, fail]))


@pytest.mark.slow
def test_tasks_are_made_as_they_are_needed() -> None:
    made = 0

    def tasks() -> Iterator[partial[int]]:
        nonlocal made
        for number in range(1000):
            made += 1
            yield partial(square, number)

    results = Processes(1).run(tasks())
    next(results)
    assert made <= 2 * IN_FLIGHT_PER_WORKER + 1
    results.close()  # type: ignore[attr-defined]


def test_no_processes_compute_nothing() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Processes(0)


@pytest.mark.slow
def test_ray_computes_the_same() -> None:
    pytest.importorskip("ray", reason="ray is not installed: make test-ray")
    cluster = RayCluster("local")
    try:
        farm: Farm = cluster
        assert sorted(farm.run(TASKS)) == SQUARES
        with pytest.raises(ConfigError, match="out of reach"):
            list(farm.run([fail]))
    finally:
        cluster.close()
