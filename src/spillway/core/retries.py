"""Where a request may not go again after a leg of it has failed."""

from __future__ import annotations

from spillway.core.events import LegFailed
from spillway.core.holding import Tracked
from spillway.core.ledger import Ledger
from spillway.core.lifecycle import State
from spillway.core.types import NodeId


def nodes_to_avoid(
    tracked: Tracked, event: LegFailed, ledger: Ledger, now_s: float
) -> frozenset[NodeId]:
    """Return the nodes that the request is not sent to again.

    A decode node that could not pull the KV need not be to blame: the KV may be gone. It is
    avoided while there is another, and tried again when it is the only one.
    """
    if _source_died(tracked, event, ledger):
        return tracked.without
    without = tracked.without | {event.node_id}
    if tracked.state is State.TRANSFERRING and not event.refused:
        others = ledger.cluster(now_s, tracked.index, without).decode
        if not any(node.usable for node in others):
            return tracked.without
    return without


def _source_died(tracked: Tracked, event: LegFailed, ledger: Ledger) -> bool:
    """Return whether the KV went down with its prefill node: no fault of the decode node."""
    if tracked.state is not State.TRANSFERRING or not event.kv_lost:
        return False
    return not ledger.nodes[tracked.prefill_id].view.usable
