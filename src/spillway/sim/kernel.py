"""The event loop of virtual time: a heap of (time, rank, sequence).

Ties in time go by rank, ties in rank by the order in which they were scheduled, so a run
has exactly one order of events whatever the platform or the hash seed.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

from spillway.core.errors import InvariantViolation

Call = Callable[[Any], None]


class Kernel:
    """Runs callbacks in order of time. `now_s` is the time of the one that is running.

    events: how many have run; more than `events_max` are taken for a run without an end.
    """

    __slots__ = ("_heap", "_sequence", "events_max", "now_s")

    def __init__(self, events_max: int = 1 << 62) -> None:
        self.now_s = 0.0
        self.events_max = events_max
        self._heap: list[tuple[float, int, int, Call, Any]] = []
        self._sequence = 0

    def at(self, time_s: float, call: Call, item: Any = None, rank: int = 0) -> None:
        """Schedule `call(item)`. Raises InvariantViolation on a time in the past or NaN (INV-3)."""
        if not time_s >= self.now_s:
            raise InvariantViolation(f"INV-3: an event at {time_s} s, but it is {self.now_s} s")
        self._sequence = sequence = self._sequence + 1
        heappush(self._heap, (time_s, rank, sequence, call, item))

    def run(self, *, until_s: float = inf, after_event: Callable[[], None] | None = None) -> None:
        """Run what is due up to and including `until_s`; `now_s` ends at the last event run.

        after_event: called after each event, to check it.
        Raises InvariantViolation after `events_max` events.
        """
        heap = self._heap
        for _ in range(self.events_max - self.events):
            if not heap or heap[0][0] > until_s:
                return
            self.now_s, _, _, call, item = heappop(heap)
            call(item)
            if after_event is not None:
                after_event()
        raise InvariantViolation(f"{self.events_max} events and no end at {self.now_s} s")

    @property
    def waiting(self) -> int:
        """Return how many events have not run."""
        return len(self._heap)

    @property
    def events(self) -> int:
        """Return how many events have run."""
        return self._sequence - len(self._heap)
