"""The soonest of several nodes for a prompt in fixed chunks: what such policies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from spillway.core.chunks import ChunkPlan
from spillway.core.decide import Candidate, Reason, TtftEstimate
from spillway.core.types import NodeId, NodeView


class Place(NamedTuple):
    """A node that may take the prompt. literal: it must follow the plan as it is."""

    node_id: NodeId
    plan: ChunkPlan
    literal: bool
    estimate: TtftEstimate


def soonest_place(
    nodes: Iterable[NodeView], find: Callable[[NodeView], Place | Reason]
) -> tuple[Place | None, list[Candidate]]:
    """Return the place with the least TTFT, or None, and a candidate for every node.

    find: the place that a node offers, or why it offers none. The first of equals wins.
    """
    best: Place | None = None
    looked_at: list[Candidate] = []
    for node in nodes:
        found = find(node)
        if isinstance(found, Reason):
            looked_at.append(Candidate(None, node.spec.node_id, None, found))
            continue
        looked_at.append(Candidate(None, found.node_id, found.estimate, Reason.SLOWER))
        if best is None or found.estimate.total_s < best.estimate.total_s:
            best = found
    return best, looked_at
