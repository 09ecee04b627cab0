"""Mock nodes with several routers in front of them at once, and one load sent through one of them.

All routers stand before the same nodes for the whole of a comparison, and only one has work at a
time: so rounds can alternate between them without starting anything anew.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import resource
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import Event
from typing import NamedTuple

from comparison import DIRECT, FLOOR
from mocks import (
    BUILD,
    BenchError,
    Cores,
    Load,
    Place,
    bare_relay,
    cpu_ns,
    family,
    load,
    mock_node,
    pss_bytes,
    start,
    stopped_at_end,
    two_cores,
)
from routers import Pools, Router, quiet_environment

PREFILL_NODES, DECODE_NODES = 2, 2
START_S_MAX = 30.0
LISTEN_PORTS = range(20_000, 32_000)  # Linux takes those of outgoing connections from 32,768 on
PORTS_TRIED_MAX = 20
SETTLE_S = 1.5  # what routers still do after their first answer: probing nodes, starting threads
PROBE = b'{"model":"mock","max_tokens":1,"stream":false,"prompt":"ready?"}'


class Subject(NamedTuple):
    """Something that load can be sent to. pid: None for a mock itself.  legs: through a router."""

    name: str
    port: int
    pid: int | None
    legs: bool


class Rig(NamedTuple):
    """Mock nodes and everything in front of them, all running."""

    cores: Cores
    mock_ports: tuple[int, ...]
    separate: bool
    subjects: tuple[Subject, ...]

    def space_events(self, us: int) -> None:
        """From now on leave this many microseconds between the events of a stream."""
        for port in self.mock_ports:
            get(port, f"/spacing-us/{us}")

    def sent(self, what: str) -> int:
        """Return how often the mocks were asked for something, by its name in /counts."""
        return sum(int(json.loads(get(port, "/counts")[1])[what]) for port in self.mock_ports)


@contextmanager
def running(
    routers: Sequence[Router],
    *,
    separate: bool,
    pinned: bool = True,
    realtime: bool = False,
    relay: bool = False,
    **mock_flags: object,
) -> Iterator[Rig]:
    """Run mocks and these routers for the length of a block.

    The first subject is a mock itself; relay adds the bare TCP relay. Raises BenchError.
    """
    cores = two_cores(realtime=realtime, pinned=pinned)
    with ExitStack() as stack:
        ports = []
        for at in range(PREFILL_NODES + DECODE_NODES):
            flags = {name: _for_node(value, at) for name, value in mock_flags.items()}
            ports.append(stack.enter_context(mock_node(cores.others, **flags)))
        urls = tuple(f"http://127.0.0.1:{port}" for port in ports)
        pools = Pools(urls[:PREFILL_NODES], urls[PREFILL_NODES:], separate)
        subjects = [Subject(DIRECT, ports[-1], None, legs=False)]
        if relay:
            pid, port = stack.enter_context(bare_relay(cores.tested, ports[-1]))
            subjects.append(Subject(FLOOR, port, pid, legs=False))
        begun = [
            stack.enter_context(_started(router, pools, cores.tested, pinned=pinned))
            for router in routers
        ]
        for router, process, port in begun:
            _wait_until_it_serves(router, process, port, pools)
            subjects.append(Subject(router.name, port, process.pid, legs=True))
        pause(SETTLE_S)
        yield Rig(cores, tuple(ports), separate, tuple(subjects))


def _for_node(value: object, at: int) -> object:
    """Return a mock's flag with NODE and ROLE in it replaced by this node's."""
    if not isinstance(value, str):
        return value
    prefill = at < PREFILL_NODES
    name = f"p{at}" if prefill else f"d{at - PREFILL_NODES}"
    return value.replace("NODE", name).replace("ROLE", "prefill" if prefill else "decode")


@contextmanager
def _started(
    router: Router, pools: Pools, place: Place, *, pinned: bool
) -> Iterator[tuple[Router, subprocess.Popen[str], int]]:
    port, metrics_port = free_port(), free_port()
    with ExitStack() as stack:
        log = stack.enter_context((BUILD / f"{router.name}.log").open("w"))
        variables = quiet_environment(one_thread=pinned)
        command = router.command(port, metrics_port, pools)
        process = start(command, place, stderr=log, env=variables, silent=True)
        stack.enter_context(stopped_at_end(process, at_once=True))
        yield router, process, port


def _wait_until_it_serves(
    router: Router, process: subprocess.Popen[str], port: int, pools: Pools
) -> None:
    """Wait for /health, say what has to be said, then wait for the first good answer."""
    give_up_s, introduced, said = time.monotonic() + START_S_MAX, False, ""
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            status, body = get(port, "/health") if not introduced else _probe(port)
        except OSError as error:  # not listening yet
            status, body = 0, str(error).encode()
        said = f"{status} {body[:200].decode(errors='replace')}"
        if status == 200 and introduced:
            return
        if status == 200:
            router.introduce(port, pools)
            introduced = True
        else:
            pause(0.1)
    log = (BUILD / f"{router.name}.log").read_text(encoding="utf-8", errors="replace")[-300:]
    raise BenchError(f"{router.name} did not start (exit code {process.poll()}): {said} {log}")


def _probe(port: int) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", "/v1/completions", PROBE, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def get(port: int, path: str) -> tuple[int, bytes]:
    """Return the status and body of a GET. Raises OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def run_load(rig: Rig, subject: Subject, **flags: object) -> tuple[Load, float]:
    """Send a load through a subject; return what it saw and the subject's CPU in microseconds.

    Raises BenchError if a request failed, or if there were not as many prefill legs as there
    should be: one a request between separate pools, else none.
    """
    prefills, used_ns = rig.sent("prefill"), _cpu_of(subject)
    seen = checked(load(rig.cores.others, subject.port, **flags))
    used_ns = _cpu_of(subject) - used_ns
    prefills = rig.sent("prefill") - prefills
    expected = seen.sent if rig.separate and subject.legs else 0
    if prefills != expected:
        raise BenchError(f"{seen.sent} requests caused {prefills} prefill legs, not {expected}")
    return seen, used_ns / 1e3


def checked(seen: Load) -> Load:
    """Return a load's result if every request of it was answered whole. Raises BenchError."""
    if seen.failed or seen.unfinished or not seen.completed:
        raise BenchError(f"a load run went wrong: {seen}")
    return seen


def memory_bytes(subject: Subject) -> int:
    """Return the proportional set size of a subject and its child processes."""
    return sum(pss_bytes(pid) for pid in family(subject.pid)) if subject.pid else 0


def _cpu_of(subject: Subject) -> int:
    return sum(cpu_ns(pid) for pid in family(subject.pid)) if subject.pid else 0


def free_port() -> int:
    """Return a port of the loopback that nothing listens on.

    It lies below those that the system gives to outgoing connections: a load has thousands of
    these, and one of them could take the port before the program that it is meant for.
    """
    for port in random.sample(LISTEN_PORTS, PORTS_TRIED_MAX):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise BenchError(f"none of {PORTS_TRIED_MAX} ports of {LISTEN_PORTS} is free")


def allow_open_files(count: int) -> None:
    """Raise the limit that child processes inherit. Raises BenchError if it may not be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise BenchError(
            f"{count} open files are needed; raise the hard limit of {hard} (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def pause(seconds: float) -> None:
    """Wait."""
    Event().wait(seconds)


def load_average() -> float:
    """Return the machine's load average over the last minute."""
    return os.getloadavg()[0]
