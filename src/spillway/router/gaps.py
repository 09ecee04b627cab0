"""Measures the time between two reads of a stream, for the few streams that are sampled.

A stream that is not sampled never comes here, so that measuring costs the others nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from spillway.clock import Clock
from spillway.router.metrics import RouterMetrics


class GapMeter:
    """Stands in for a stream's `write`: notes when it is called, and passes the bytes on.

    A read holds one token where an engine sends each by itself, and several where it lags behind.
    """

    __slots__ = ("_clock", "_last_s", "_metrics", "_observe", "_route", "_tbt_s", "_write")

    def __init__(
        self,
        write: Callable[[bytes], object],
        clock: Clock,
        metrics: RouterMetrics,
        route: str,
        tbt_s: float,
    ) -> None:
        self._write = write
        self._clock = clock
        self._metrics = metrics
        self._observe = metrics.gap[route].observe
        self._route = route
        self._tbt_s = tbt_s
        self._last_s = clock.now_s()

    def __call__(self, data: bytes) -> None:
        last_s, self._last_s = self._last_s, self._clock.now_s()
        if last_s != inf:
            gap_s = self._last_s - last_s
            self._observe(gap_s)
            if gap_s > self._tbt_s:
                self._metrics.gaps_late[self._route] += 1
        self._write(data)

    def skip(self) -> None:
        """The next gap is the client's doing: it had stopped reading."""
        self._last_s = inf
