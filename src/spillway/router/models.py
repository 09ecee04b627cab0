"""Which models the decode nodes serve: for `GET /v1/models`, and to refuse unknown ones early."""

from __future__ import annotations

from spillway.core.types import NodeId
from spillway.wire.openai import Fields, models_body


class ModelBook:
    """The model list of each decode node, as it last told.

    expected: the nodes whose lists make the book complete. Until each has told its own, no model
    can be called unknown.
    """

    def __init__(self) -> None:
        self.expected: set[NodeId] = set()
        self._by_node: dict[NodeId, Fields] = {}
        self._union: Fields = {}
        self._is_complete = False
        self.was_missed = False

    def tell(self, node_id: NodeId, models: Fields) -> None:
        """Take a node's list, each entry as the node wrote it."""
        self._by_node[node_id] = models
        self._update()

    def forget(self, node_id: NodeId) -> None:
        """A node is gone; what only it served is no longer listed."""
        self.expected.discard(node_id)
        self._by_node.pop(node_id, None)
        self._update()

    def expect(self, node_id: NodeId) -> None:
        """A node is there; its list is not known yet."""
        self.expected.add(node_id)
        self._update()

    def may_exist(self, model: str) -> bool:
        """Return False only when every usable decode node has told that it does not serve it.

        A miss is remembered in `was_missed`, so that the lists are read again soon.
        """
        if not self._is_complete or model in self._union:
            return True
        self.was_missed = True
        return False

    def body(self) -> bytes:
        """Return the union as an OpenAI model list."""
        return models_body(self._union)

    def _update(self) -> None:
        self._union = {}
        for node_id in sorted(self._by_node, reverse=True):  # the first node's entry wins
            self._union.update(self._by_node[node_id])
        self._is_complete = bool(self._by_node) and self.expected <= self._by_node.keys()
