"""Publishes the node's reports: on change at most every 20 ms, and a heartbeat every 250 ms.

A report is a whole picture, so a subscriber that reads too slowly loses the oldest lines first;
the gap in `seq` tells it so, and the engine counts it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spillway.wire.report import NodeReport, encode

REPORT_INTERVAL_S = 0.020
HEARTBEAT_S = 0.250
LINES_MAX = 16  # per subscriber; at 20 ms each, a third of a second


class Subscription:
    """The lines one reader has not taken yet. router_id: who it says it is."""

    def __init__(self, dropped: Counter[str], router_id: str = "") -> None:
        self.router_id = router_id
        self._lines: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._closed = False
        self._dropped = dropped

    def put(self, line: bytes) -> None:
        if len(self._lines) == LINES_MAX:
            self._lines.popleft()
            self._dropped["report_line"] += 1
        self._lines.append(line)
        self._ready.set()

    def close(self) -> None:
        self._closed = True
        self._ready.set()

    async def next_lines(self) -> bytes:
        """Return every line that waits, at least one; b"" once the publisher has closed."""
        await self._ready.wait()
        self._ready.clear()
        if self._closed:
            return b""
        lines = b"".join(self._lines)
        self._lines.clear()
        return lines


class ReportPublisher:
    """Makes one report per moment and hands it to every subscriber.

    make_report: called with the next sequence number, only while somebody listens.
    """

    def __init__(
        self,
        make_report: Callable[[int], NodeReport],
        dropped: Counter[str],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._make_report = make_report
        self._dropped = dropped
        self._loop = loop
        self._seq = 0
        self._sent_at_s = -HEARTBEAT_S
        self._due_s = float("inf")
        self._timer: asyncio.TimerHandle | None = None
        self._subscriptions: list[Subscription] = []
        self._closed = False

    @property
    def routers(self) -> int:
        """Return how many routers listen; one that opened its stream again counts once."""
        return len({subscription.router_id for subscription in self._subscriptions})

    def changed(self) -> None:
        """Report soon: at once if the last report is 20 ms old, else when it will be. O(1)."""
        if self._closed or not self._subscriptions:
            return
        due_s = self._sent_at_s + REPORT_INTERVAL_S
        if due_s <= self._loop.time():
            self._publish()
        elif due_s < self._due_s:
            self._arm(due_s)

    @contextmanager
    def subscribe(self, router_id: str = "") -> Iterator[Subscription]:
        """Open a subscription; its first line comes within 20 ms."""
        subscription = Subscription(self._dropped, router_id)
        if self._closed:
            subscription.close()
        self._subscriptions.append(subscription)
        self.changed()
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End every subscription and open no more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for subscription in self._subscriptions:
            subscription.close()

    def _publish(self) -> None:
        self._due_s = float("inf")
        if not self._subscriptions:
            return
        self._seq += 1
        line = encode(self._make_report(self._seq))
        for subscription in self._subscriptions:
            subscription.put(line)
        self._sent_at_s = self._loop.time()
        self._arm(self._sent_at_s + HEARTBEAT_S)

    def _arm(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due_s = due_s
        self._timer = self._loop.call_at(due_s, self._publish)
