"""One node of a simulated cluster with what surrounds it: its link, its wake-up, its reports."""

from __future__ import annotations

from collections import deque
from math import inf

from spillway.core.events import NodeState
from spillway.core.types import NodeSpec
from spillway.sim.link import Link
from spillway.sim.node import SimNode


class Port:
    """A node and its surroundings.

    due_s: the time of its one valid wake-up in the kernel, inf when there is none.
    next_tick_s: from this time on a change must be preceded by a snapshot (`reports.py`).
    tick, heard_tick: last report tick that was looked at, and that reached the dispatcher.
    quiet: idle and unchanged since the last report.
    """

    __slots__ = (
        "alive",
        "due_s",
        "heard_s",
        "heard_tick",
        "link",
        "next_tick_s",
        "node",
        "node_id",
        "quiet",
        "segment",
        "snapshots",
        "spec",
        "tick",
    )

    def __init__(self, node: SimNode) -> None:
        self.node = node
        self.node_id = node.node_id
        self.spec: NodeSpec = node.spec
        self.segment = node.segment
        self.link = Link(node.spec)
        self.alive = True
        self.due_s = inf
        self.next_tick_s = 0.0
        self.tick = -1
        self.heard_tick = -1
        self.heard_s = -inf
        self.quiet = False
        self.snapshots: deque[tuple[int, NodeState]] = deque()
