"""Compiles the C programs of this folder and runs them: mock nodes and the load generator.

Both are C so that the router, and not what surrounds it, is what a benchmark measures. They are
compiled on the spot into build/bench with the machine's own `cc`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

SOURCES = Path(__file__).resolve().parent
BUILD = SOURCES.parent / "build" / "bench"


class BenchError(Exception):
    """A benchmark cannot run here, or what it ran misbehaved. The text says what to do."""


def compiled(name: str, *flags: str) -> Path:
    """Return the program `name`, compiled now if its source is newer. Raises BenchError.

    flags: further ones for the compiler, the same in every call for one name.
    """
    source, program = SOURCES / f"{name}.c", BUILD / name
    newest_s = max(source.stat().st_mtime, (SOURCES / "net.h").stat().st_mtime)
    if program.exists() and program.stat().st_mtime >= newest_s:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler: install one that answers to `cc` (for example gcc)")
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-O2", "-Wall", "-Wextra", *flags, "-o", str(program), str(source), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchError(f"{source.name} does not compile:\n{done.stderr}")
    return program


class Place(NamedTuple):
    """Where a process runs. core: None leaves it to the kernel.

    realtime: before everything of normal priority (SCHED_FIFO).
    """

    core: int | None
    realtime: bool = False


class Cores(NamedTuple):
    """Pinned, the process under test runs alone on one core and everything else beside it."""

    tested: Place
    others: Place


def two_cores(*, realtime: bool = False, pinned: bool = True) -> Cores:
    """Return two cores this process may use, or the same one twice; unpinned, all of them."""
    if not pinned:
        return Cores(Place(None, realtime), Place(None, realtime))
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(Place(allowed[0], realtime), Place(allowed[-1], realtime))


def start(
    command: Sequence[str], place: Place, *, silent: bool = False, **popen: Any
) -> subprocess.Popen[str]:
    """Start a process in its place, its standard output piped unless silent. Raises BenchError."""
    output = subprocess.DEVNULL if silent else subprocess.PIPE
    process = subprocess.Popen(command, stdout=output, text=True, **popen)
    try:
        if place.core is not None:
            os.sched_setaffinity(process.pid, {place.core})
        if place.realtime:
            os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        process.kill()
        process.communicate()
        raise BenchError("--realtime needs the right to it: root or CAP_SYS_NICE") from None
    return process


@contextmanager
def stopped_at_end(
    process: subprocess.Popen[str], *, at_once: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Terminate a process when the block ends, or kill it at once, and wait for it."""
    try:
        yield process
    finally:
        (process.kill if at_once else process.terminate)()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def mock_node(place: Place, **flags: object) -> Iterator[int]:
    """Run a mock node for the length of a block; yields its port. Flags as in mocknode.c."""
    with stopped_at_end(start([str(compiled("mocknode")), *as_flags(flags)], place)) as process:
        yield listening_port(process)


@contextmanager
def bare_relay(place: Place, upstream_port: int) -> Iterator[tuple[int, int]]:
    """Run a bare TCP relay for the length of a block; yields its process id and its port."""
    with stopped_at_end(start([str(compiled("relay")), str(upstream_port)], place)) as process:
        yield process.pid, listening_port(process)


def listening_port(process: subprocess.Popen[str]) -> int:
    """Return the port that a C program says it listens on. Raises BenchError."""
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if len(words) != 2 or words[0] != "listening":
        raise BenchError(f"{process.args!r} did not start (exit code {process.wait(timeout=5)})")
    return int(words[1])


class Load(NamedTuple):
    """What one run of the load generator saw. Series are in microseconds, None when empty."""

    sent: int
    completed: int
    bad_status: int
    broken: int
    refused: int
    short_streams: int
    unfinished: int
    elapsed_s: float
    ttft_us: dict[str, float] | None
    transit_us: dict[str, float] | None
    latency_us: dict[str, float] | None
    lateness_us: dict[str, float] | None

    @property
    def failed(self) -> int:
        """Return the requests that went wrong in any way but being cut off by the end."""
        return self.bad_status + self.broken + self.refused + self.short_streams

    @property
    def events(self) -> int:
        """Return how many stream events came."""
        return int(self.transit_us["count"]) if self.transit_us else 0


def load(place: Place, port: int, **flags: object) -> Load:
    """Run the load generator to its end. Flags as in loadgen.c. Raises BenchError."""
    with load_running(place, port, **flags) as process:
        return load_result(process)


@contextmanager
def load_running(place: Place, port: int, **flags: object) -> Iterator[subprocess.Popen[str]]:
    """Run the load generator for the length of a block."""
    command = [str(compiled("loadgen")), *as_flags({"port": port, **flags})]
    with stopped_at_end(start(command, place)) as process:
        yield process


def load_result(process: subprocess.Popen[str]) -> Load:
    """Wait for a load generator to end and return what it saw. Raises BenchError."""
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    if process.wait(timeout=60) != 0 or not lines:
        raise BenchError(f"the load generator failed with exit code {process.returncode}")
    return Load(**json.loads(lines[-1]))


def as_flags(flags: dict[str, object]) -> list[str]:
    """Return command-line flags; True gives a bare flag, False none."""
    words = []
    for name, value in flags.items():
        if value is False:
            continue
        words.append("--" + name.replace("_", "-"))
        if value is not True:
            words.append(str(value))
    return words


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it. Raises BenchError."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
    except OSError as error:
        raise BenchError(f"process {pid} is gone, or this is not Linux: {error}") from None
    return [pid, *(one for child in children for one in family(int(child)))]


def cpu_ns(pid: int) -> int:
    """Return the nanoseconds on CPU of all threads of a process so far. Raises BenchError."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    except OSError as error:
        raise BenchError(f"CPU time needs Linux with /proc/PID/task/*/schedstat: {error}") from None


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process. Raises BenchError."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BenchError(f"memory needs Linux with /proc/PID/smaps_rollup: {error}") from None
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/{pid}/smaps_rollup has no Pss line")
