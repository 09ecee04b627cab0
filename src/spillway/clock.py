"""The one place outside `core` that knows what time it is.

Everything that waits or measures is given a `Clock`, so a test can hand in a `ManualClock` and
never sleep. All times are seconds from an origin that only the clock knows; only differences mean
something. `asyncio` is imported by whoever waits: it would be a tenth of a short command's start.
"""

from __future__ import annotations

import time
from heapq import heappop, heappush
from itertools import count
from math import isfinite
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncio import Future


class Clock(Protocol):
    """A source of seconds that never goes back, and a way to wait for one of them."""

    def now_s(self) -> float:
        """Return the seconds since the clock's origin."""
        ...

    async def sleep_until(self, due_s: float) -> None:
        """Return once `now_s() >= due_s`; give other tasks a turn even if that is so already."""
        ...


def unix_s() -> float:
    """Return the seconds since 1970, for logs alone: this clock may jump."""
    return time.time()


class MonotonicClock:
    """The machine's monotonic clock, the same origin as `asyncio`'s own timers."""

    __slots__ = ()

    now_s = staticmethod(time.monotonic)  # the router asks several times a request

    async def sleep_until(self, due_s: float) -> None:
        # Event loops round timers to whole milliseconds and may wake early, so look again.
        import asyncio

        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        while (left_s := due_s - time.monotonic()) > 0.0:
            await asyncio.sleep(left_s)


class ManualClock:
    """A clock that stands still until a test moves it."""

    __slots__ = ("_now_s", "_order", "_sleepers")

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s
        self._order = count()
        self._sleepers: list[tuple[float, int, Future[None]]] = []

    def now_s(self) -> float:
        return self._now_s

    async def sleep_until(self, due_s: float) -> None:
        import asyncio

        if due_s <= self._now_s:
            await asyncio.sleep(0)
            return
        woken: Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (due_s, next(self._order), woken))
        await woken

    def advance(self, delta_s: float) -> None:
        """Move on by `delta_s` and wake every sleeper that is due, in order of due time.

        The woken tasks run when the caller next awaits. Raises ValueError if time would go back.
        """
        if not (isfinite(delta_s) and delta_s >= 0.0):
            raise ValueError(f"a clock cannot advance by {delta_s} s")
        self._now_s += delta_s
        while self._sleepers and self._sleepers[0][0] <= self._now_s:
            _, _, woken = heappop(self._sleepers)
            if not woken.done():
                woken.set_result(None)

    def next_due_s(self) -> float | None:
        """Return when the next sleeper wants to wake, or None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None
