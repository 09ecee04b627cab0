"""When a node that still answers /health is failing requests all the same.

Every leg feeds it. A node whose recent legs fail for the most part is taken out, for a time that
doubles with each relapse; when it comes back, its first failure takes it out again and its first
success clears it. What to do about it is the owner's: this knows neither sockets nor pools.
"""

from __future__ import annotations

from spillway.core.types import NodeId
from spillway.router.settings import RouterSettings

DOUBLINGS_MAX = 16


class _Record:
    """What one node has done since `since_s`. Kept only while there is something against it."""

    __slots__ = ("failures", "on_probation", "out_until_s", "since_s", "successes", "trips")

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.failures = self.successes = self.trips = 0
        self.on_probation = False
        self.out_until_s = since_s


class Breaker:
    """Counts the failed legs of each node and says when it is to be left alone.

    A node trips at `breaker_failures` failures within `breaker_window_s` that make up at least
    `breaker_failed_frac` of its legs since the first of them.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._records: dict[NodeId, _Record] = {}

    def succeeded(self, node_id: NodeId, now_s: float) -> None:
        """Count a leg that went well. Costs one comparison while no node is failing."""
        record = self._records.get(node_id) if self._records else None
        if record is None:
            return
        record.successes += 1
        record.on_probation = False
        if now_s - record.since_s > self._settings.breaker_window_s:
            del self._records[node_id]

    def failed(self, node_id: NodeId, now_s: float) -> bool:
        """Count a leg that failed by the node's fault. Returns whether the node trips by it."""
        settings = self._settings
        record = self._records.setdefault(node_id, _Record(now_s))
        if now_s - record.since_s > settings.breaker_window_s:
            record.since_s = now_s
            record.failures = record.successes = 0
        record.failures += 1
        share_frac = record.failures / (record.failures + record.successes)
        return record.on_probation or (
            record.failures >= settings.breaker_failures
            and share_frac >= settings.breaker_failed_frac
        )

    def open(self, node_id: NodeId, now_s: float) -> None:
        """The node is taken out: start its time."""
        record = self._records[node_id]
        out_s = self._settings.breaker_open_s * 2.0 ** min(record.trips, DOUBLINGS_MAX)
        record.out_until_s = now_s + min(out_s, self._settings.breaker_open_max_s)
        record.trips += 1
        record.on_probation = True
        record.failures = record.successes = 0

    def may_return(self, node_id: NodeId, now_s: float) -> bool:
        """Return whether the node's time is over, or none was set."""
        record = self._records.get(node_id)
        return record is None or now_s >= record.out_until_s
