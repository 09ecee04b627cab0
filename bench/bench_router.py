"""What the router costs: CPU per request and per chunk, latency added, memory per open stream.

The router runs alone on one core, between mock nodes and a load generator in C that share another.
Rounds straight to a mock and through the router alternate, and an added latency is the difference
within a round. CPU time is read from the scheduler and does not count waiting for a busy core.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any, NamedTuple

from figures import Effort, Figure, figure, yardstick_us
from mocks import (
    BUILD,
    BenchError,
    Cores,
    Load,
    bare_relay,
    cpu_ns,
    load,
    load_running,
    mock_node,
    pss_bytes,
    start,
    stopped_at_end,
    two_cores,
)

PREFILL_NODES, DECODE_NODES = 2, 2
START_S_MAX = 20.0
ROUTER_LOG = BUILD / "router.log"
CHUNKS = 64
STREAMS_PER_S, REQUESTS_PER_S = 100, 300
BUSY_STREAMS, BUSY_CONNECTIONS = 256, 32
REPORT_LINE = (
    '{"node_id":"NODE","role":"ROLE","seq":@SEQ,"step":@SEQ,"backlog_prompts":0,'
    '"backlog_tokens":0,"backlog_token_pairs":0.0,"decode_seqs":9,"kv_used_tokens":9000,'
    '"kv_capacity_tokens":200000,"dispatch_seen":{@SEEN},"tbt_s_min":0.06,'
    '"last_step_predicted_s":0.021,"last_step_actual_s":0.022,"chunk_mode":"engine",'
    '"chunk_tokens_max":2048}'
)


class Cluster(NamedTuple):
    """Mock nodes and the router in front of them, all running."""

    cores: Cores
    router_pid: int
    router_port: int
    mock_ports: tuple[int, ...]

    @property
    def decode_port(self) -> int:
        """Return the port of a decode mock, for the direct rounds."""
        return self.mock_ports[-1]


class Repeats(NamedTuple):
    """How much is measured, and whether latencies are at real-time priority."""

    rounds: int
    load_s: float
    streams_held: int
    realtime: bool


def run(effort: Effort) -> Iterator[Figure]:
    """Yield the figures of the router. Raises BenchError if anything misbehaves."""
    if effort.quick:
        repeats = Repeats(3, 1.0, 1000, effort.realtime)
    else:
        repeats = Repeats(7, 2.0, 2000, effort.realtime)
    yield from _requests(repeats)
    yield from _streams(repeats)
    yield from _saturated_streams(repeats)
    yield from _memory(repeats)
    yield _reports(repeats)
    yield _yardstick_beside_load()


# --- what is measured ------------------------------------------------------------------------


def _requests(repeats: Repeats) -> list[Figure]:
    """Requests without streaming: cost when busy, cost and latency at a moderate rate."""
    busy_us, calm_us, added_us = [], [], []
    busy = {"connections": BUSY_CONNECTIONS, "duration_s": repeats.load_s / 2}
    calm = {"rate": REQUESTS_PER_S, "duration_s": repeats.load_s / 2}
    with running_cluster(realtime=repeats.realtime) as cluster:
        _warm_up(cluster)
        for at in range(repeats.rounds):
            seen, us = _through_router(cluster, **busy)
            busy_us.append(us / seen.completed)
            direct = _checked(load(cluster.cores.others, cluster.decode_port, seed=at, **calm))
            seen, us = _through_router(cluster, seed=at, **calm)
            calm_us.append(us / seen.completed)
            added_us.append(_p50(seen.latency_us) - _p50(direct.latency_us))
    rate = f"{REQUESTS_PER_S}/s"
    return [
        figure(
            "router_cpu_per_request",
            busy_us,
            "us",
            target=80.0,
            note=f"NIXL two-step, JSON, {BUSY_CONNECTIONS} connections, closed loop",
        ),
        figure("router_cpu_per_request_calm", calm_us, "us", note=f"the same at {rate}"),
        figure("router_added_latency_p50", added_us, "us", note=f"JSON at {rate}, less direct"),
    ]


def _streams(repeats: Repeats) -> list[Figure]:
    """Streams at a moderate rate: nearly every chunk wakes the router."""
    chunk_us, ttft_us, ttft_p99_us, transit_us = [], [], [], []
    floor_chunk_us, floor_ttft_us = [], []
    flags: dict[str, Any] = {"rate": STREAMS_PER_S, "duration_s": repeats.load_s}
    flags |= {"stream": True, "expect_events": CHUNKS}
    with ExitStack() as stack:
        cluster = stack.enter_context(
            running_cluster(realtime=repeats.realtime, chunks=CHUNKS, spacing_us=10_000)
        )
        floor = stack.enter_context(bare_relay(cluster.cores.tested, cluster.decode_port))
        _warm_up(cluster)
        for at in range(repeats.rounds):
            flags["seed"] = at
            direct = _checked(load(cluster.cores.others, cluster.decode_port, **flags))
            relayed, us = _with_cpu(floor, cluster.cores, flags)
            floor_chunk_us.append(us / relayed.events)
            floor_ttft_us.append(_p50(relayed.ttft_us) - _p50(direct.ttft_us))
            seen, us = _through_router(cluster, **flags)
            chunk_us.append(us / seen.events)
            ttft_us.append(_p50(seen.ttft_us) - _p50(direct.ttft_us))
            ttft_p99_us.append(_p99(seen.ttft_us) - _p99(direct.ttft_us))
            transit_us.append(_p50(seen.transit_us) - _p50(direct.transit_us))
    rate = f"{STREAMS_PER_S} streams/s of {CHUNKS} chunks"
    note = f"{rate}, each stream's request included"
    return [
        figure("router_cpu_per_chunk", chunk_us, "us", target=35.0, note=note),
        figure("floor_cpu_per_chunk", floor_chunk_us, "us", note="the same by a bare relay in C"),
        figure("router_added_ttft_p50", ttft_us, "us", target=300.0, note="two-step, less direct"),
        figure("router_added_ttft_p99", ttft_p99_us, "us"),
        figure("floor_added_ttft_p50", floor_ttft_us, "us", note="one leg, by a bare relay in C"),
        figure("router_added_chunk_p50", transit_us, "us", note="transit of an event, less direct"),
    ]


def _saturated_streams(repeats: Repeats) -> list[Figure]:
    """More chunks than the router can wake for: reads coalesce."""
    chunk_us, per_s = [], []
    with running_cluster(chunks=CHUNKS, spacing_us=2000) as cluster:
        _warm_up(cluster)
        for _ in range(repeats.rounds):
            flags = {"connections": BUSY_STREAMS, "duration_s": repeats.load_s / 2}
            flags |= {"stream": True, "expect_events": CHUNKS}
            seen, us = _through_router(cluster, **flags)
            chunk_us.append(us / seen.events)
            per_s.append(seen.events / seen.elapsed_s)
    note = f"{BUSY_STREAMS} streams, a chunk every 2 ms each"
    return [
        figure("router_cpu_per_chunk_saturated", chunk_us, "us", target=8.0, note=note),
        figure("router_chunks_per_s", per_s, "1/s", at_least=True, note="reached in that run"),
    ]


def _memory(repeats: Repeats) -> list[Figure]:
    """Memory of streams that have begun and wait for their next chunk."""
    count = repeats.streams_held
    _allow_open_files(2 * count + 500)
    with running_cluster(chunks=CHUNKS, spacing_us=10_000_000) as cluster:
        _checked(load(cluster.cores.others, cluster.router_port, connections=8, duration_s=0.2))
        before = pss_bytes(cluster.router_pid)
        flags = {"connections": count, "stream": True, "duration_s": 30, "drain_s": 0}
        with load_running(cluster.cores.others, cluster.router_port, **flags) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            if line != f"open {count}\n":
                raise BenchError(f"{count} streams did not open: {line.strip() or 'no answer'}")
            held = pss_bytes(cluster.router_pid) - before
    return [
        figure(
            "router_bytes_per_stream",
            [held / count],
            "B",
            target=20_000.0,
            note=f"PSS with {count} open streams, less idle",
        ),
        figure("router_base_bytes", [float(before)], "B", note="PSS of the idle router"),
    ]


def _reports(repeats: Repeats) -> Figure:
    """The cost of listening to nodes that have something to say every 20 ms."""
    samples_us = []
    with running_cluster(report=REPORT_LINE, report_ms=20) as cluster:
        _pause(1.0)
        for _ in range(repeats.rounds):
            reports, used_ns = _reports_sent(cluster), cpu_ns(cluster.router_pid)
            _pause(repeats.load_s / 2)
            used_ns = cpu_ns(cluster.router_pid) - used_ns
            reports = _reports_sent(cluster) - reports
            if not reports:
                raise BenchError("the router asked no mock for reports")
            samples_us.append(used_ns / reports / 1e3)
    note = "an idle router, all its timers included"
    return figure("router_cpu_per_report", samples_us, "us", note=note)


def _yardstick_beside_load() -> Figure:
    """The yardstick on the router's core while the other core is as busy as in a load run."""
    cores, here = two_cores(), os.sched_getaffinity(0)
    with mock_node(cores.others) as port:
        flags = {"connections": BUSY_CONNECTIONS, "duration_s": 30}
        with load_running(cores.others, port, **flags) as process:
            assert process.stdout is not None
            process.stdout.readline()  # every connection is at work
            os.sched_setaffinity(0, {cores.tested.core})
            try:
                samples = yardstick_us()
            finally:
                os.sched_setaffinity(0, here)
    note = "against `yardstick`: what this machine's cores take from each other"
    return figure("yardstick_beside_load", samples, "us", note=note)


# --- how it is measured ----------------------------------------------------------------------


@contextmanager
def running_cluster(*, realtime: bool = False, **mock_flags: object) -> Iterator[Cluster]:
    """Run mock nodes with these flags, and the router before them, for the length of a block."""
    cores = two_cores(realtime=realtime)
    with ExitStack() as stack:
        ports = []
        for at in range(PREFILL_NODES + DECODE_NODES):
            role = "prefill" if at < PREFILL_NODES else "decode"
            name = f"p{at}" if role == "prefill" else f"d{at - PREFILL_NODES}"
            flags = dict(mock_flags)
            if "report" in flags:
                line = str(flags["report"])
                flags["report"] = line.replace("NODE", name).replace("ROLE", role)
            ports.append(stack.enter_context(mock_node(cores.others, **flags)))
        router_port = _free_port()
        log = stack.enter_context(ROUTER_LOG.open("w"))
        command = _router_command(router_port, ports)
        process = stack.enter_context(stopped_at_end(start(command, cores.tested, stderr=log)))
        _wait_until_healthy(process, router_port)
        yield Cluster(cores, process.pid, router_port, tuple(ports))


def _router_command(router_port: int, mock_ports: list[int]) -> list[str]:
    urls = [f"http://127.0.0.1:{port}" for port in mock_ports]
    command = [sys.executable, "-m", "spillway", "serve", "--port", str(router_port)]
    for url in urls[:PREFILL_NODES]:
        command += ["--prefill", url]
    for url in urls[PREFILL_NODES:]:
        command += ["--decode", url]
    return [*command, "--policy", "headroom"]


def _through_router(cluster: Cluster, **flags: object) -> tuple[Load, float]:
    """Run a load through the router; return what it saw and the router's CPU microseconds."""
    prefills = _prefills(cluster)
    seen, us = _with_cpu((cluster.router_pid, cluster.router_port), cluster.cores, flags)
    prefills = _prefills(cluster) - prefills
    if prefills != seen.sent:
        raise BenchError(f"{seen.sent} requests caused {prefills} prefill legs, not as many")
    return seen, us


def _with_cpu(server: tuple[int, int], cores: Cores, flags: dict[str, Any]) -> tuple[Load, float]:
    """Run a load against (process id, port); return what it saw and that process's CPU us."""
    pid, port = server
    used_ns = cpu_ns(pid)
    seen = _checked(load(cores.others, port, **flags))
    return seen, (cpu_ns(pid) - used_ns) / 1e3


def _checked(seen: Load) -> Load:
    if seen.failed or seen.unfinished or not seen.completed:
        raise BenchError(f"a load run went wrong: {seen}")
    return seen


def _warm_up(cluster: Cluster) -> None:
    for stream in (False, True):
        flags = {"connections": 16, "duration_s": 0.2, "stream": stream}
        _checked(load(cluster.cores.others, cluster.router_port, **flags))


def _prefills(cluster: Cluster) -> int:
    return sum(_counts(port)["prefill"] for port in cluster.mock_ports)


def _reports_sent(cluster: Cluster) -> int:
    return sum(_counts(port)["reports"] for port in cluster.mock_ports)


def _counts(mock_port: int) -> dict[str, int]:
    answer: dict[str, int] = json.loads(_get(mock_port, "/counts")[1])
    return answer


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def _wait_until_healthy(process: subprocess.Popen[str], port: int) -> None:
    give_up_s = time.monotonic() + START_S_MAX
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            break
        try:
            if _get(port, "/health")[0] == 200:
                return
        except OSError:
            pass  # not listening yet
        _pause(0.05)
    said = ROUTER_LOG.read_text(encoding="utf-8")[-500:]
    raise BenchError(f"the router did not start (exit code {process.poll()}): {said}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _allow_open_files(count: int) -> None:
    """Raise the limit that child processes inherit. Raises BenchError if it may not be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(
            f"{count} open files are needed; raise the hard limit of {hard} (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _pause(seconds: float) -> None:
    Event().wait(seconds)


def _p50(series: dict[str, float] | None) -> float:
    return series["p50"] if series else 0.0


def _p99(series: dict[str, float] | None) -> float:
    return series["p99"] if series else 0.0
