"""The event loop of virtual time: a heap of (time, priority, sequence).

Ties in time go by priority, ties in priority by the order in which they were scheduled, so a run
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

    events_max: how many events may ever be scheduled; more are a run without an end.
    """

    __slots__ = ("_heap", "_sequence", "events_max", "now_s")

    def __init__(self, events_max: int = 1 << 62) -> None:
        self.now_s = 0.0
        self.events_max = events_max
        self._heap: list[tuple[float, int, int, Call, Any]] = []
        self._sequence = 0

    def at(self, time_s: float, call: Call, item: Any = None, priority: int = 0) -> None:
        """Schedule `call(item)`.

        Raises InvariantViolation on a time in the past or NaN (INV-3), and once there have been
        more than `events_max` events.
        """
        if not time_s >= self.now_s:
            raise InvariantViolation(f"INV-3: an event at {time_s} s, but it is {self.now_s} s")
        self._sequence += 1
        if self._sequence > self.events_max:
            raise InvariantViolation(f"{self.events_max} events and no end at {self.now_s} s")
        heappush(self._heap, (time_s, priority, self._sequence, call, item))

    def run(self, *, until_s: float = inf, after_event: Callable[[], None] | None = None) -> None:
        """Run what is due up to and including `until_s`; `now_s` ends at the last event run.

        after_event: called after each event, to check it.
        """
        heap = self._heap
        while heap:
            event = heappop(heap)
            if event[0] > until_s:
                heappush(heap, event)
                return
            self.now_s = event[0]
            event[3](event[4])
            if after_event is not None:
                after_event()

    @property
    def waiting(self) -> int:
        """Return how many events have not run."""
        return len(self._heap)

    @property
    def events(self) -> int:
        """Return how many events have run."""
        return self._sequence - len(self._heap)
