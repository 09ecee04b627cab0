"""One measured figure beside its target, and how to take one on a machine that others use too.

CPU time is measured and not wall time wherever that is what is meant: a process that waits for a
busy core pays nothing for it. Every figure is a median of repeats and carries their spread.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import NamedTuple

BATCH_NS = 2_000_000  # long against the timer's resolution, short against a scheduler's slice


class Effort(NamedTuple):
    """How a run was asked for. quick: few repeats.  realtime: latencies at real-time priority."""

    quick: bool
    realtime: bool


class Figure(NamedTuple):
    """A figure: the median of its samples, their lowest and highest, and what it should be.

    target: None for a figure that is there to be looked at.  at_least: larger is better.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    target: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Return whether the target is met, or None when there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def figure(
    name: str,
    samples: Sequence[float],
    unit: str,
    *,
    target: float | None = None,
    at_least: bool = False,
    note: str = "",
) -> Figure:
    """Return the figure of one or more samples."""
    return Figure(name, median(samples), unit, min(samples), max(samples), target, at_least, note)


def cpu_us_per_call(
    calls: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Return the CPU microseconds of one call of each, once per round.

    A round runs a batch of each in turn, so that a slow spell of the machine meets them all alike.
    """
    batches = {name: _batch_calls(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            samples[name].append(_batch_ns(call, batches[name]) / batches[name] / 1e3)
    return samples


def yardstick_us() -> list[float]:
    """Return the CPU microseconds of a fixed piece of plain Python.

    Shared and virtual machines change speed by the minute; figures of two runs compare only as far
    as their yardsticks do.
    """
    return cpu_us_per_call({"sum": lambda: sum(at * at for at in range(1000))}, 7)["sum"]


def _batch_calls(call: Callable[[], object]) -> int:
    """Return how many calls make a batch long enough."""
    calls, taken_ns = 1, _batch_ns(call, 1)
    while taken_ns < BATCH_NS:
        calls = max(2 * calls, calls * BATCH_NS // max(taken_ns, 1))
        taken_ns = _batch_ns(call, calls)
    return calls


def _batch_ns(call: Callable[[], object], calls: int) -> int:
    turns = range(calls)
    start_ns = time.thread_time_ns()
    for _ in turns:
        call()
    return time.thread_time_ns() - start_ns


class Machine(NamedTuple):
    """What the figures were taken on."""

    cpu: str
    cores: int
    kernel: str
    python: str
    libraries: str
    load_average: str

    def lines(self) -> list[str]:
        """Return the lines that head a table of figures."""
        return [
            f"{self.cpu}, {self.cores} cores, {self.kernel}, load average {self.load_average}",
            f"Python {self.python}, {self.libraries}",
        ]


def this_machine() -> Machine:
    """Return the machine and the versions that the figures depend on."""
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return Machine(
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_version()} ({sys.implementation.name})",
        libraries=", ".join(
            f"{name} {_version(name)}" for name in ("uvloop", "httptools", "msgspec")
        ),
        load_average=load,
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
