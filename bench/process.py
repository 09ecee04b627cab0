"""A command run to its end, and what it cost: CPU seconds, wall seconds, peak memory."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mocks import BUILD, BenchError

TAIL_CHARS = 300


class Cost(NamedTuple):
    """What a whole process cost, from its start to its end, its own children included."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def run_to_end(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    s_max: float = 600.0,
) -> Cost:
    """Return what a command cost. Raises BenchError if it fails or takes longer than s_max."""
    log = BUILD / "command.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [str(word) for word in command]
    begun_s = time.monotonic()
    with log.open("w") as said:
        process = subprocess.Popen(
            # `timeout` is reaped with the command below it, whose cost it reports as its own
            ["timeout", str(int(s_max)), *words],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = log.read_text(encoding="utf-8", errors="replace").strip()[-TAIL_CHARS:]
        why = f"took over {s_max:.0f} s" if process.returncode == 124 else "failed"
        raise BenchError(f"{Path(words[0]).name} {why}: {tail}")
    return Cost(
        cpu_s=usage.ru_utime + usage.ru_stime,
        wall_s=time.monotonic() - begun_s,
        peak_bytes=usage.ru_maxrss * 1024,
    )
