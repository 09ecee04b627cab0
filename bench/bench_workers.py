"""Several worker processes against one: how much more the same cores do.

Two routers stand before the same mocks, one of one process, one of WORKERS, and get a closed loop
in turn, with as many connections for each process. All their processes are pinned to one core,
which they fill; mocks and load generator have the other. Workers share nothing, so that with a core
for each their throughput is WORKERS times that of one process, times the ratio of CPU time per
request: the part of it that can be measured on two cores. The supervisor's time is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bench_router import BUSY_CONNECTIONS, BUSY_SPACING_US, BUSY_STREAMS, CHUNKS
from figures import Effort, Figure, figure
from mocks import cpu_ns, family
from rig import Rig, Subject, run_load, running
from routers import Pools, Router, spillway

WORKERS = 2
TARGET_TIMES = 1.8
LOADS: dict[str, tuple[dict[str, int], int]] = {
    "requests": ({"connections": BUSY_CONNECTIONS}, 0),
    "streams": (
        {"connections": BUSY_STREAMS, "stream": True, "expect_events": CHUNKS},
        BUSY_SPACING_US,
    ),
}


def workers() -> Router:
    """Return this project's router as several processes."""
    one: Callable[[int, int, Pools], list[str]] = spillway().command

    def command(port: int, metrics_port: int, pools: Pools) -> list[str]:
        return [*one(port, metrics_port, pools), "--workers", str(WORKERS)]

    return Router(f"{WORKERS} workers", "this checkout", command)


def run(effort: Effort) -> Iterator[Figure]:
    """Yield what was measured. Raises BenchError if nothing can run."""
    rounds, load_s = (2, 0.5) if effort.quick else (7, 2.0)
    with running([spillway(), workers()], separate=True) as rig:
        _, one, several = rig.subjects
        for name, (flags, spacing_us) in LOADS.items():
            rig.space_events(spacing_us)
            more = {**flags, "connections": WORKERS * flags["connections"]}
            times, shares = [], []
            for _ in range(rounds):
                alone_us = _cpu_us_per_request(rig, one, load_s, flags)
                before = _cpu_by_worker(several)
                shared_us = _cpu_us_per_request(rig, several, load_s, more)
                after = _cpu_by_worker(several)
                used = [now - was for now, was in zip(after, before, strict=True)]
                times.append(WORKERS * alone_us / shared_us)
                shares.append(max(used) / sum(used))
            note = f"{WORKERS} x CPU per request of one process over that of {WORKERS} workers"
            yield figure(
                f"workers_{name}_times", times, "x", target=TARGET_TIMES, at_least=True, note=note
            )
            note = f"of the busiest worker's CPU time; {1 / WORKERS:.2f} is even"
            yield figure(f"workers_{name}_share", shares, "frac", note=note)


def versions() -> dict[str, str]:
    """Return what is compared, by name: nothing but this checkout."""
    return {}


def _cpu_us_per_request(rig: Rig, subject: Subject, load_s: float, flags: dict[str, int]) -> float:
    seen, cpu_us = run_load(rig, subject, duration_s=load_s, **flags)
    return cpu_us / seen.completed


def _cpu_by_worker(subject: Subject) -> list[int]:
    """Return the CPU nanoseconds of each worker so far."""
    assert subject.pid is not None
    _, *children = family(subject.pid)
    return [cpu_ns(pid) for pid in children]
