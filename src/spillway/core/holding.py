"""Requests that wait at the router, and the bookings that they make while they are reviewed.

A request that is held is on no node. It waits in one line, most urgent first by the policy's own
key, and is decided again whenever a node may soon be free: binding is late, so that nobody is stuck
behind a prompt on one node while another falls idle. A review walks the line from its head. Who
stays held is *planned* on the node it would wait for: for the rest of the review that node counts
as busy for so much longer, so that each request is judged by what is left for it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from math import inf

from spillway.core.decide import HoldingPolicy, Policy
from spillway.core.events import Action, SetTimer
from spillway.core.ledger import Entry
from spillway.core.lifecycle import State
from spillway.core.types import ClusterView, NodeId, NodeView, RequestId, RequestView

NO_NODES: frozenset[NodeId] = frozenset()
# Requests looked at in one review; those behind them have no chance before these are gone.
REVIEWED_MAX = 8
# A held request is looked at again at the latest after this long, whatever was predicted.
REVIEW_S_MAX = 0.05
# And not sooner than this, so that no prediction can make the timer spin.
REVIEW_S_MIN = 0.001


class Tracked:
    """One live request."""

    __slots__ = (
        "declined",
        "declined_by",
        "entry",
        "index",
        "node_id",
        "prefill_id",
        "request",
        "retries",
        "state",
        "without",
    )

    def __init__(self, request: RequestView, index: int) -> None:
        self.request = request
        self.index = index  # requests that arrived before it
        self.state = State.ARRIVED
        self.node_id: NodeId = ""  # where the current leg runs
        self.entry: Entry | None = None
        self.prefill_id: NodeId = ""  # where its KV is, once prefilled
        self.retries = 0
        self.without = NO_NODES  # nodes that already failed it
        self.declined = 0  # how often a node would not take its deflection
        self.declined_by: NodeId = ""  # which one it was last, until the next decision is logged


class HoldLine:
    """The line of held requests. `add` and `drop` cost O(log line) and a shift.

    policy: says how urgent a request is; None for one that never holds, whose line stays empty.
    timer_s: the moment for which a wake-up has been ordered and not come yet, inf for none.
    """

    __slots__ = ("_by_age", "_line", "policy", "timer_s")

    def __init__(self, policy: Policy) -> None:
        self.policy = policy if isinstance(policy, HoldingPolicy) else None
        self.timer_s = inf
        self._line: list[tuple[float, int, Tracked]] = []
        self._by_age: dict[RequestId, tuple[float, int, Tracked]] = {}

    def __len__(self) -> int:
        return len(self._line)

    def __iter__(self) -> Iterator[Tracked]:
        return (place[2] for place in self._line)

    def add(self, tracked: Tracked, cluster: ClusterView) -> None:
        """Put a request in its place: before all that are less urgent, after its equals."""
        assert self.policy is not None
        place = (self.policy.hold_key(tracked.request, cluster), tracked.index, tracked)
        insort(self._line, place)
        self._by_age[tracked.request.request_id] = place

    def drop(self, tracked: Tracked) -> None:
        """Take a request out."""
        place = self._by_age.pop(tracked.request.request_id)
        del self._line[bisect_left(self._line, place)]

    def due(self, oldest_s: float) -> list[Tracked]:
        """Return who is looked at now: those held since `oldest_s` or before, then the head."""
        overdue: list[Tracked] = []
        for _, _, tracked in self._by_age.values():
            if tracked.request.arrival_s > oldest_s or len(overdue) == REVIEWED_MAX:
                break
            overdue.append(tracked)
        head = [place[2] for place in self._line[:REVIEWED_MAX]]
        if not overdue:
            return head
        return overdue + [tracked for tracked in head if tracked not in overdue]

    def anybody_may_go(self, cluster: ClusterView) -> bool:
        """Return whether some node could take work now: else no review can move anybody. O(nodes).

        Without any usable node the review has to say so to those who wait.
        """
        policy, now_s = self.policy, cluster.now_s
        assert policy is not None
        usable = False
        for node in (*cluster.prefill, *cluster.decode):
            if node.usable:
                usable = True
                if node.backlog_until_s - now_s <= policy.feed_s(node):
                    return True
        return not usable

    def timer(self, at_s: float, now_s: float) -> list[Action]:
        """Return the order for a wake-up at about `at_s`, unless an earlier one is due (INV-13)."""
        at_s = max(now_s + REVIEW_S_MIN, min(at_s, now_s + REVIEW_S_MAX))
        if not self._line or self.timer_s <= at_s:
            return []
        self.timer_s = at_s
        return [SetTimer(at_s)]


class Planned:
    """What those who stay held would do to the nodes: undone at the end of the review."""

    __slots__ = ("_before_s",)

    def __init__(self) -> None:
        self._before_s: dict[NodeId, tuple[NodeView, float]] = {}

    def book(self, view: NodeView, until_s: float) -> None:
        """Let the node count as busy until then."""
        self._before_s.setdefault(view.spec.node_id, (view, view.backlog_until_s))
        view.backlog_until_s = until_s

    def undo(self, node_id: NodeId | None = None) -> None:
        """Let one node, or every node, count as before."""
        for each in [node_id] if node_id is not None else list(self._before_s):
            found = self._before_s.pop(each, None)
            if found is not None:
                found[0].backlog_until_s = found[1]
