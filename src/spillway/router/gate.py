"""Holds requests back, by class and by client, when as many are running as the operator allows.

Each class has a queue of its own, bounded in length and in time. Classes are served by priority;
within a class the clients take turns, so that one of them cannot fill it for the others. Without a
limit there is no gate, and nothing here runs.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from spillway.core.errors import RequestError
from spillway.core.types import RequestId
from spillway.router.relay import Exchange

QUEUE_FULL, WAITED_TOO_LONG = "queue_full", "queue_wait"


class Queueing(NamedTuple):
    """How the requests of a class wait. priority: higher is served first."""

    priority: int = 0
    requests_max: int = 256
    wait_s_max: float = 5.0


class Starter(Protocol):
    """Who starts a request, or gives it up."""

    live: dict[RequestId, Exchange]

    def begin(self, exchange: Exchange) -> None: ...

    def give_up(self, exchange: Exchange, reason: str) -> None: ...


class _Line:
    """The queue of one class: one line per client, served in turns."""

    def __init__(self, queueing: Queueing) -> None:
        self.queueing = queueing
        self.count = 0
        self._by_client: dict[str, deque[Exchange]] = {}

    def add(self, exchange: Exchange, client: str) -> None:
        self._by_client.setdefault(client, deque()).append(exchange)
        self.count += 1

    def take(self) -> Exchange:
        """Return the next one; its client goes to the end of the row."""
        client = next(iter(self._by_client))
        line = self._by_client.pop(client)
        exchange = line.popleft()
        if line:
            self._by_client[client] = line
        self.count -= 1
        return exchange

    def drop(self, exchange: Exchange, client: str) -> None:
        line = self._by_client[client]
        line.remove(exchange)
        if not line:
            del self._by_client[client]
        self.count -= 1


class Gate:
    """Lets at most `running_max` requests run at a time.

    refused: requests that did not get through, by (class, why).
    """

    def __init__(self, starter: Starter, running_max: int, queues: Mapping[str, Queueing]) -> None:
        self._starter = starter
        self._running_max = running_max
        by_priority = sorted(queues.items(), key=lambda item: -item[1].priority)
        self._lines = {name: _Line(queueing) for name, queueing in by_priority}
        self._places: dict[RequestId, str] = {}  # who waits, and as which client
        self._until_s: dict[RequestId, float] = {}  # and for how long
        self._is_pumping = False
        self.refused: Counter[tuple[str, str]] = Counter()

    def queued(self) -> dict[str, int]:
        """Return how many wait, by class."""
        return {name: line.count for name, line in self._lines.items()}

    def hold_back(self, exchange: Exchange, client: str) -> bool:
        """Return whether a request has to wait. Raises RequestError (429) if it cannot even."""
        running = len(self._starter.live) - len(self._places)
        if running < self._running_max and not self._places:
            return False
        line = self._line(exchange.view.class_name)
        if line.count >= line.queueing.requests_max:
            self.refused[exchange.view.class_name, QUEUE_FULL] += 1
            raise RequestError("too many requests of this class are waiting", status=429)
        line.add(exchange, client)
        view = exchange.view
        self._places[view.request_id] = client
        self._until_s[view.request_id] = view.arrival_s + line.queueing.wait_s_max
        self._pump_soon()
        return True

    def ended(self, exchange: Exchange) -> None:
        """A request is over, whether it ran or waited; another may have room now."""
        client = self._places.pop(exchange.view.request_id, None)
        if client is not None:
            del self._until_s[exchange.view.request_id]
            self._line(exchange.view.class_name).drop(exchange, client)
        if self._places:
            self._pump_soon()

    def excuse(self, lost_s: float) -> None:
        """Let everybody wait for longer: our own loop stood still, and nobody could move on."""
        for request_id in self._until_s:
            self._until_s[request_id] += lost_s

    def sweep(self, now_s: float) -> None:
        """Give up on requests that have waited for too long."""
        for request_id in list(self._places):
            exchange = self._starter.live[request_id]
            view = exchange.view
            if now_s > self._until_s[request_id] or now_s > view.deadline_s:
                self.refused[view.class_name, WAITED_TOO_LONG] += 1
                self._starter.give_up(exchange, WAITED_TOO_LONG)

    def _line(self, class_name: str) -> _Line:
        """Return the queue of a class; one that is new since the start waits after all others."""
        return self._lines.setdefault(class_name, _Line(Queueing()))

    def _pump_soon(self) -> None:
        # Not from here: what ended may not be out of the dispatcher's books yet.
        if not self._is_pumping:
            self._is_pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pumping = False
        for line in list(self._lines.values()):
            while line.count and len(self._starter.live) - len(self._places) < self._running_max:
                exchange = line.take()
                del self._places[exchange.view.request_id]
                del self._until_s[exchange.view.request_id]
                self._starter.begin(exchange)
