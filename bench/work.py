"""How much a call does, counted and not timed: Python calls, and memory at its peak.

Both are the same on every machine of one Python version, so that a test can put a limit on them.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple


class Work(NamedTuple):
    """What one call does: functions called, built-in ones too but no types; bytes at its peak."""

    calls: int
    peak_bytes: int


def work_of(call: Callable[[], object], warm_ups: int = 3) -> Work:
    """Return the work of one call, after a few that may fill caches."""
    for _ in range(warm_ups):
        call()
    return Work(_calls(call), _peak_bytes(call))


def _calls(call: Callable[[], object]) -> int:
    count = 0

    def seen(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count - 1  # the end of counting is a call too


def _peak_bytes(call: Callable[[], object]) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        before_bytes, _peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before_bytes
    finally:
        tracemalloc.stop()
