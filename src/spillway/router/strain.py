"""Whether the streams of a node that does not report still meet their targets.

Without reports nobody but the relay sees a stock engine's steps. It times the gaps of every stream
there. Where too many are late, for whatever reason, the node takes no deflected prompts for a
while, longer with each relapse: the cause (a wrong profile, other traffic) is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf

from spillway.clock import Clock
from spillway.core.types import NodeId
from spillway.router.heartbeat import Heartbeat
from spillway.router.settings import RouterSettings

DOUBLINGS_MAX = 16


class NodeGaps:
    """The gaps of one node's streams since the last look at them."""

    __slots__ = ("gaps", "is_strained", "late_gaps", "rest_until_s", "strains")

    def __init__(self) -> None:
        self.gaps = self.late_gaps = self.strains = 0
        self.is_strained = False
        self.rest_until_s = -inf


class StreamGaps:
    """Stands in for a stream's `write`: times it, and passes the bytes on.

    A read holds one token where an engine sends each by itself, and several where it lags behind.
    A gap in which our own loop stood still says nothing of the node.
    """

    __slots__ = ("_heartbeat", "_last_s", "_node", "_now_s", "_tbt_s", "_write")

    def __init__(
        self,
        write: Callable[[bytes], object],
        clock: Clock,
        node: NodeGaps,
        tbt_s: float,
        heartbeat: Heartbeat,
    ) -> None:
        self._write = write
        self._now_s = clock.now_s
        self._node = node
        self._tbt_s = tbt_s
        self._heartbeat = heartbeat
        self._last_s = clock.now_s()

    def __call__(self, data: bytes) -> None:
        now_s = self._now_s()
        node = self._node
        node.gaps += 1
        is_late = now_s - self._last_s > self._tbt_s
        if is_late and not self._heartbeat.stood_still_since(self._last_s):
            node.late_gaps += 1
        self._last_s = now_s
        self._write(data)

    def skip(self) -> None:
        """The next gap is the client's doing: it had stopped reading."""
        self._last_s = inf


class StrainWatch:
    """Counts late gaps by node, and says which nodes are strained by them.

    A node is strained when, between two sweeps, at least `strain_gaps_min` gaps were seen and
    `strain_late_frac` of them were late. It rests for `strain_rest_s`, doubled with each relapse
    up to `strain_rest_max_s`; a node that has been well for that long starts anew.
    """

    def __init__(self, settings: RouterSettings) -> None:
        self._settings = settings
        self._nodes: dict[NodeId, NodeGaps] = {}

    def of(self, node_id: NodeId) -> NodeGaps:
        """Return the counts of a node, for its streams to add to."""
        return self._nodes.setdefault(node_id, NodeGaps())

    def sweep(self, now_s: float) -> Iterator[tuple[NodeId, bool]]:
        """Yield each node that has become strained (True) or may be tried again (False)."""
        for node_id, node in self._nodes.items():
            if node.is_strained:
                if now_s < node.rest_until_s:
                    continue
                node.is_strained = False
                node.gaps = node.late_gaps = 0  # those of the rest say nothing of what follows
                yield node_id, False
            elif self._is_late(node):
                self._rest(node, now_s)
                yield node_id, True
            elif now_s - node.rest_until_s > self._settings.strain_rest_max_s:
                node.strains = 0

    def _is_late(self, node: NodeGaps) -> bool:
        """Look at what was counted; too few gaps are kept for the next look."""
        settings = self._settings
        if node.gaps < settings.strain_gaps_min:
            return False
        late_gaps, gaps = node.late_gaps, node.gaps
        node.gaps = node.late_gaps = 0
        return late_gaps >= settings.strain_late_frac * gaps

    def _rest(self, node: NodeGaps, now_s: float) -> None:
        settings = self._settings
        rest_s = settings.strain_rest_s * 2.0 ** min(node.strains, DOUBLINGS_MAX)
        node.rest_until_s = now_s + min(rest_s, settings.strain_rest_max_s)
        node.strains += 1
        node.is_strained = True
