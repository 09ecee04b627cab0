"""Facts about nodes alone: what they do to the ledger. None of them is about a request."""

from __future__ import annotations

from spillway.core.events import (
    ChunkingLearned,
    NodeBack,
    NodeJoined,
    NodeLost,
    NodeReported,
    NodeStrained,
)
from spillway.core.ledger import Ledger

AboutNode = NodeReported | NodeLost | NodeBack | NodeJoined | ChunkingLearned | NodeStrained
ABOUT_NODES = (NodeReported, NodeLost, NodeBack, NodeJoined, ChunkingLearned, NodeStrained)


def hear(event: AboutNode, ledger: Ledger) -> bool:
    """Take one fact into the books; return False, changing nothing, for one that is of no use.

    Those are facts about a node that is unknown, or known already when it joins, and reports that
    are overtaken or come from a node that is lost.
    """
    if isinstance(event, NodeJoined):
        if event.spec.node_id in ledger.nodes:
            return False
        ledger.join(event.spec)
        return True
    node_id = event.report.node_id if isinstance(event, NodeReported) else event.node_id
    node = ledger.nodes.get(node_id)
    if node is None:
        return False
    match event:
        case NodeReported():
            return node.view.usable and node.report(event.report)
        case NodeLost():
            node.view.usable = False
        case NodeBack():
            if not node.view.usable:
                node.view.usable = True
                node.restarted()
        case ChunkingLearned():
            node.learn_chunking(event.chunk_mode, event.chunk_tokens_max)
        case NodeStrained():
            if node.view.reporting:  # its own word is better
                return False
            node.view.over_budget = event.strained
    return True
