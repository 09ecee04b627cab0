"""What a router costs, beside its peers: CPU, latency added, memory per open stream.

The routers stand between mock nodes and a load generator in C. Rounds alternate between a mock
directly and each router; an added latency is the difference within a round. CPU time is read from
the scheduler and does not count waiting for a busy core.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from comparison import DIRECT, OURS, Absent, Comparison
from figures import Effort, Figure, figure, yardstick_us
from mocks import BenchError, Load, cpu_ns, load, load_running, mock_node, two_cores
from peers import pinned_version
from rig import (
    Rig,
    Subject,
    allow_open_files,
    checked,
    memory_bytes,
    pause,
    run_load,
    running,
)
from routers import PEER_ROUTERS, Router, spillway
from simulators import AS_PYTHON, compiled

CHUNKS, SPACING_US = 64, 10_000
BUSY_STREAMS, BUSY_CONNECTIONS, BUSY_SPACING_US = 256, 32, 2_000
BODIES_KB, BODIES_PER_S = (0.2, 2.0, 20.0, 200.0), 200
REPORT_LINE = (
    '{"node_id":"NODE","role":"ROLE","seq":@SEQ,"step":@SEQ,"backlog_prompts":0,'
    '"backlog_tokens":0,"backlog_token_pairs":0.0,"decode_seqs":9,"kv_used_tokens":9000,'
    '"kv_capacity_tokens":200000,"dispatch_seen":{@SEEN},"tbt_s_min":0.06,'
    '"last_step_predicted_s":0.021,"last_step_actual_s":0.022,"chunk_mode":"engine",'
    '"chunk_tokens_max":2048}'
)
# What ours over a peer's must not exceed between separate pools, every process on its own core.
TARGETS = {
    ("busy requests", "CPU per request"): 0.5,
    ("100 streams/s", "CPU per chunk"): 0.95,
    ("busy streams", "CPU per chunk"): 0.6,
    ("100 streams/s", "added TTFT p50"): 0.6,
    ("100 streams/s", "added TTFT p99"): 1.0,
    ("open streams", "memory per stream"): 0.25,
}
TARGETS |= {(f"{kb:g} KB bodies", "CPU per request"): 0.5 for kb in BODIES_KB}
PLAIN = "regular, pinned"
PD = "P/D, pinned"


class Work(NamedTuple):
    """One load, and which quantities are taken from it."""

    name: str
    flags: dict[str, Any]
    spacing_us: int = SPACING_US

    @property
    def streams(self) -> bool:
        """Return whether the answers are streamed."""
        return "stream" in self.flags

    @property
    def busy(self) -> bool:
        """Return whether it is a closed loop, in which a latency says nothing about the router."""
        return "connections" in self.flags


class Repeats(NamedTuple):
    """How much is measured."""

    rounds: int
    unpinned_rounds: int
    load_s: float
    streams_held: int
    realtime: bool


def run(effort: Effort) -> Iterator[Figure | Comparison | Absent]:
    """Yield what was measured, and what could not be. Raises BenchError if nothing can run."""
    if effort.quick:
        repeats = Repeats(2, 1, 0.6, 500, effort.realtime)
    else:
        repeats = Repeats(5, 3, 1.5, 2000, effort.realtime)
    routers = [spillway(name=AS_PYTHON)]
    try:
        routers.insert(0, spillway(package=compiled()))
    except BenchError as error:
        routers = [spillway()]
        yield Absent("spillway, compiled", str(error))
    ours = routers[0]
    for name, peer in PEER_ROUTERS.items():
        try:
            routers.append(peer())
        except BenchError as error:
            yield Absent(name, str(error))
    for separate in (True, False):
        yield from _rounds(routers, repeats, separate=separate, pinned=True)
        yield from _rounds(routers, repeats, separate=separate, pinned=False)
        yield from _memory(routers, repeats, separate=separate)
    yield _reports(ours, repeats)
    yield _yardstick_beside_load()


def versions() -> dict[str, str]:
    """Return what is compared, by name."""
    return {name: pinned_version(name) for name in PEER_ROUTERS}


def works(repeats: Repeats, *, pinned: bool) -> list[Work]:
    """Return the loads of one comparison; the short list where nothing is pinned."""
    stream = {"stream": True, "expect_events": CHUNKS}
    per_s = [
        Work(f"{rate} streams/s", {"rate": rate, "duration_s": repeats.load_s, **stream})
        for rate in ((100, 300) if pinned else (100,))
    ]
    short_s = repeats.load_s / 2
    busy = [
        Work("busy requests", {"connections": BUSY_CONNECTIONS, "duration_s": short_s}),
        Work(
            "busy streams",
            {"connections": BUSY_STREAMS, "duration_s": short_s, **stream},
            BUSY_SPACING_US,
        ),
    ]
    bodies = [
        Work(
            f"{kb:g} KB bodies",
            {"rate": BODIES_PER_S, "duration_s": short_s, "prompt_bytes": int(kb * 1000)},
        )
        for kb in BODIES_KB
    ]
    return per_s + busy + (bodies if pinned else [])


# --- rounds ----------------------------------------------------------------------------------


def _rounds(
    routers: Sequence[Router], repeats: Repeats, *, separate: bool, pinned: bool
) -> Iterator[Comparison | Absent]:
    """Measure every load through every subject, round by round."""
    setting = f"{'P/D' if separate else 'regular'}, {'pinned' if pinned else 'unpinned'}"
    rounds = repeats.rounds if pinned else repeats.unpinned_rounds
    wrong: dict[tuple[str, str], str] = {}
    options: dict[str, Any] = {"chunks": CHUNKS, "spacing_us": SPACING_US}
    options |= {"realtime": repeats.realtime and pinned, "relay": not separate}
    with running(routers, separate=separate, pinned=pinned, **options) as rig:
        _warm_up(rig)
        for work in works(repeats, pinned=pinned):
            rig.space_events(work.spacing_us)
            table: dict[str, dict[str, list[float | None]]] = defaultdict(dict)
            for at in range(rounds):
                for name, values in _one_round(rig, work, at, wrong).items():
                    for quantity in _quantities(work):
                        value = values.get(quantity)
                        table[quantity].setdefault(name, [None] * at).append(value)
            for quantity in _quantities(work):
                known = {
                    name: values
                    for name, values in table[quantity].items()
                    if any(value is not None for value in values)
                }
                targets = _targets(setting, work.name, quantity)
                yield Comparison(setting, work.name, quantity, "us", known, targets=targets)
    for (name, load_name), reason in wrong.items():
        yield Absent(f"{setting}, {name}, {load_name}", reason, ours=name == OURS)


def _one_round(
    rig: Rig, work: Work, at: int, wrong: dict[tuple[str, str], str]
) -> dict[str, dict[str, float]]:
    """Return the quantities of one load by subject; who comes first changes with the round."""
    direct, *others = rig.subjects
    flags = work.flags if work.busy else work.flags | {"seed": at}
    base = None if work.busy else _retried(rig, direct, flags)[0]
    turned = others[at % len(others) :] + others[: at % len(others)]
    found: dict[str, dict[str, float]] = {DIRECT: _absolute(base)} if base else {}
    for subject in turned:
        try:
            seen, cpu_us = _retried(rig, subject, flags)
        except BenchError as error:
            wrong.setdefault((subject.name, work.name), f"round {at + 1}: {error}")
            found[subject.name] = {}
            continue
        found[subject.name] = _taken(work, seen, cpu_us, base)
    return found


def _targets(setting: str, load_name: str, quantity: str) -> dict[str, float]:
    target = TARGETS.get((load_name, quantity)) if setting == PD else None
    return {} if target is None else dict.fromkeys(PEER_ROUTERS, target)


def _retried(rig: Rig, subject: Subject, flags: dict[str, Any]) -> tuple[Load, float]:
    """Send a load, and once more if the first goes wrong: on a busy machine one may not drain."""
    try:
        return run_load(rig, subject, **flags)
    except BenchError:
        return run_load(rig, subject, **flags)


def _quantities(work: Work) -> list[str]:
    cpu = "CPU per chunk" if work.streams else "CPU per request"
    if work.busy:
        return [cpu]
    if not work.streams:
        return [cpu, "added latency p50", "added latency p99"]
    return [
        *(cpu, "added TTFT p50", "added TTFT p99"),
        *("added per-chunk latency p50", "added per-chunk latency p99"),
    ]


def _taken(work: Work, seen: Load, cpu_us: float, base: Load | None) -> dict[str, float]:
    """Return what one load through one subject says, in microseconds."""
    values = {_quantities(work)[0]: cpu_us / (seen.events if work.streams else seen.completed)}
    if base is not None:
        mine, plain = _absolute(seen), _absolute(base)
        values |= {quantity: mine[quantity] - plain[quantity] for quantity in mine}
    return values


def _absolute(seen: Load) -> dict[str, float]:
    """Return a load's latencies, named as the quantities that are made from them."""
    if seen.transit_us is None or seen.ttft_us is None:
        series = {"added latency": seen.latency_us}
    else:
        series = {"added TTFT": seen.ttft_us, "added per-chunk latency": seen.transit_us}
    return {
        f"{name} {quantile}": values[quantile]
        for name, values in series.items()
        if values
        for quantile in ("p50", "p99")
    }


def _warm_up(rig: Rig) -> None:
    for subject in rig.subjects:
        for stream in (False, True):
            flags = {"connections": 16, "duration_s": 0.3, "stream": stream}
            checked(load(rig.cores.others, subject.port, **flags))


# --- the rest --------------------------------------------------------------------------------


def _memory(
    routers: Sequence[Router], repeats: Repeats, *, separate: bool
) -> Iterator[Comparison | Absent]:
    """Memory of streams that have begun and wait for their next chunk."""
    count = repeats.streams_held
    allow_open_files(4 * count + 500)
    setting = PD if separate else PLAIN
    per_stream: dict[str, list[float | None]] = {}
    idle: dict[str, list[float | None]] = {}
    with running(routers, separate=separate, chunks=CHUNKS, spacing_us=10_000_000) as rig:
        for subject in rig.subjects[1:]:
            try:
                before, held = _held(rig, subject, count)
            except BenchError as error:
                name = f"{setting}, {subject.name}, {count} open streams"
                yield Absent(name, str(error), ours=subject.name == OURS)
                continue
            per_stream[subject.name] = [held / count]
            idle[subject.name] = [before / 1e6]
    targets = _targets(setting, "open streams", "memory per stream")
    load_name = f"{count} open streams"
    yield Comparison(setting, load_name, "memory per stream", "B", per_stream, targets=targets)
    yield Comparison(setting, "no load", "memory", "MB", idle)


def _held(rig: Rig, subject: Subject, count: int) -> tuple[int, int]:
    """Return a subject's memory before it holds streams, and what it grows by."""
    flags: dict[str, Any] = {"connections": 8, "duration_s": 0.2}
    checked(load(rig.cores.others, subject.port, **flags))
    before = memory_bytes(subject)
    flags = {"connections": count, "stream": True, "duration_s": 30, "drain_s": 0}
    with load_running(rig.cores.others, subject.port, **flags) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if line != f"open {count}\n":
            raise BenchError(f"{count} streams did not open: {line.strip() or 'no answer'}")
        return before, memory_bytes(subject) - before


def _reports(ours: Router, repeats: Repeats) -> Figure:
    """The cost of listening to nodes that have something to say every 20 ms."""
    samples_us = []
    with running([ours], separate=True, report=REPORT_LINE, report_ms=20) as rig:
        pid = rig.subjects[1].pid
        assert pid is not None
        for _ in range(repeats.rounds):
            reports, used_ns = rig.sent("reports"), cpu_ns(pid)
            pause(repeats.load_s / 2)
            used_ns = cpu_ns(pid) - used_ns
            reports = rig.sent("reports") - reports
            if not reports:
                raise BenchError("the router asked no mock for reports")
            samples_us.append(used_ns / reports / 1e3)
    note = "an idle router, all its timers included"
    return figure("router_cpu_per_report", samples_us, "us", note=note)


def _yardstick_beside_load() -> Figure:
    """The yardstick on one core while the other core is as busy as in a load run."""
    cores, here = two_cores(), os.sched_getaffinity(0)
    with mock_node(cores.others) as port:
        flags = {"connections": BUSY_CONNECTIONS, "duration_s": 30}
        with load_running(cores.others, port, **flags) as process:
            assert process.stdout is not None
            process.stdout.readline()  # every connection is at work
            os.sched_setaffinity(0, {cores.tested.core or 0})
            try:
                samples = yardstick_us()
            finally:
                os.sched_setaffinity(0, here)
    note = "against `yardstick`: what this machine's cores take from each other"
    return figure("yardstick_beside_load", samples, "us", note=note)
