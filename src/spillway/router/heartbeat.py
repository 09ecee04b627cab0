"""For how long the event loop stood still: a stopped process, a starved machine, a long callback.

Whoever waits for a node looks here before blaming it: while our own loop stood still nobody's
answer was read. A beat that comes late says so; between two beats, so does one that is overdue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from spillway.clock import Clock

BEAT_S = 0.05
LATE_S = 0.02  # a beat later than this was kept from coming
LOOK_S = 0.05  # for sockets that nobody looked at: timers may come before them


class Heartbeat:
    """Beats every `BEAT_S` seconds while the loop runs.

    stalls: how often the loop stood still.
    A standstill that is shorter than BEAT_S + LATE_S may go unnoticed, and of a longer one up to
    BEAT_S are not counted.
    """

    __slots__ = (
        "_beat_s",
        "_before_s",
        "_due_s",
        "_ended_s",
        "_is_back",
        "_lost_s",
        "clock",
        "stalls",
    )

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._before_s = self._beat_s = clock.now_s()
        self._due_s = inf
        self._ended_s = -inf
        self._lost_s = 0.0
        self._is_back = False
        self.stalls = 0

    def beat(self) -> None:
        """Note that the loop runs; to be called every `BEAT_S`."""
        now_s = self.clock.now_s()
        late_s = now_s - self._due_s
        self._is_back = late_s > LATE_S
        if self._is_back:
            self._lost_s += late_s
            self._ended_s = now_s
            self.stalls += 1
        self._before_s, self._beat_s = self._beat_s, now_s
        self._due_s = now_s + BEAT_S

    def lost_s(self) -> float:
        """Return for how long the loop has stood still, in all and up to now; it never falls."""
        late_s = self.clock.now_s() - self._due_s
        return self._lost_s + late_s if late_s > LATE_S else self._lost_s

    def stood_still_since(self, since_s: float) -> bool:
        """Return whether the loop stood still at some time after `since_s`."""
        return self._ended_s > since_s or self.clock.now_s() - self._due_s > LATE_S

    def came_after_s(self) -> float:
        """Return a moment before which what is read now had not come yet, by all that is known.

        That is now, unless the loop has just stood still: then it is the last beat before.
        """
        now_s = self.clock.now_s()
        if now_s - self._due_s > LATE_S:
            return self._beat_s
        return self._before_s if self._is_back else now_s


def _nothing() -> None:
    pass


class Timer:
    """Calls `action` after the loop has run for `delay_s`, and has looked at its sockets."""

    __slots__ = ("_action", "_due_s", "_handle", "_heartbeat", "_loop", "_lost_s")

    def __init__(self, heartbeat: Heartbeat, delay_s: float, action: Callable[[], None]) -> None:
        self._heartbeat = heartbeat
        self._action = action
        self._loop = asyncio.get_running_loop()
        self._lost_s = heartbeat.lost_s()
        self._due_s = heartbeat.clock.now_s() + delay_s
        self._handle = self._loop.call_later(delay_s, self._rings)

    def cancel(self) -> None:
        """The action is not called any more, and forgotten: it may know who holds this timer."""
        self._handle.cancel()
        self._action = _nothing

    def _rings(self) -> None:
        before_s, self._lost_s = self._lost_s, self._heartbeat.lost_s()
        if self._lost_s <= before_s:
            self._action()
            return
        self._due_s += self._lost_s - before_s
        left_s = self._due_s - self._heartbeat.clock.now_s()
        self._handle = self._loop.call_later(max(left_s, LOOK_S), self._rings)
