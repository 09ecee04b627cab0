"""Puts the threads of a vLLM node where they belong: one core each, NIXL's behind the engine's.

NIXL's progress thread polls without pause. On the engine's core at equal priority it halves the
engine's speed; far behind, it holds locks for long and steps stall. Ten steps of niceness were
measured to cost least. Reads /proc, so Linux only.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

NIXL_NICE_STEPS = 10
NICE_STEPS_MAX = 19


def engine_pid(node_pid: int) -> int | None:
    """Return the process of a node's engine: the only child of its API server, or None."""
    children = Path(f"/proc/{node_pid}/task/{node_pid}/children")
    with suppress(FileNotFoundError, ProcessLookupError):
        pids = [int(pid) for pid in children.read_text().split()]
        for pid in pids:
            if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text() or len(pids) == 1:
                return pid
    return None


def threads(pid: int) -> list[int]:
    """Return the thread ids of a process; none when it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except FileNotFoundError:
        return []


def pin(pid: int, cores: set[int]) -> None:
    """Let all threads of a process run on these cores only."""
    for thread in threads(pid):
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread, cores)


def busy_ticks(pid: int) -> dict[int, int]:
    """Return the processor ticks of each thread of a process but its first."""
    ticks = {}
    for thread in threads(pid):
        if thread != pid:
            with suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
                fields = stat.rpartition(")")[2].split()
                ticks[thread] = int(fields[11]) + int(fields[12])
    return ticks


def renice_busiest(pid: int, before: dict[int, int]) -> int | None:
    """Step back the thread that ran most since `before`, while the engine was idle.

    Returns its id, None when no thread ran: then NIXL does not poll here.
    """
    since = {thread: now - before.get(thread, 0) for thread, now in busy_ticks(pid).items()}
    busiest = max(since, key=lambda thread: since[thread], default=None)
    if busiest is None or not since[busiest]:
        return None
    with suppress(ProcessLookupError):
        steps = os.getpriority(os.PRIO_PROCESS, pid) + NIXL_NICE_STEPS
        os.setpriority(os.PRIO_PROCESS, busiest, min(steps, NICE_STEPS_MAX))
    return busiest
