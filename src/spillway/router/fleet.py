"""Which nodes there are, while the router runs: nodes join, drain, come back and leave.

A node that joins gets work once it answers /health. One that leaves gets no more work, keeps what
it has until that ends, and is forgotten then. A node whose description changes leaves, and joins
again as what it is now.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from spillway.core.errors import ConfigError
from spillway.core.events import NodeJoined, NodeLeft
from spillway.core.types import NodeId, Role
from spillway.router.health import HealthWatch
from spillway.router.intake import Intake
from spillway.router.pool import NodePool
from spillway.router.shell import Shell
from spillway.wire.config import Node

DRAINING = "draining"
NOT_READY = "not_ready"  # says who found it


class Fleet:
    """The nodes of one router.

    nodes: those that are to be there; `leaving` are on their way out, each with what takes its
        place (None: nothing does).
    """

    def __init__(
        self, shell: Shell, health: HealthWatch, intake: Intake, nodes: Sequence[Node]
    ) -> None:
        self._shell = shell
        self.health = health
        self._intake = intake
        self.nodes: dict[NodeId, Node] = {node.spec.node_id: node for node in nodes}
        self.leaving: dict[NodeId, Node | None] = {}

    def apply(self, nodes: Sequence[Node]) -> tuple[list[NodeId], list[NodeId]]:
        """Make the fleet what `nodes` say; return which ids join and which leave.

        Raises ConfigError, changing nothing, if no decode node would be left or a URL is none.
        """
        wanted = {node.spec.node_id: node for node in nodes}
        if not any(node.spec.role is Role.DECODE for node in nodes):
            raise ConfigError("there is no decode node; at least one is needed")
        for node in nodes:
            self._pool(node)  # raises for a URL that is none
        changed = [name for name, node in wanted.items() if self.nodes.get(name, node) != node]
        gone = [name for name in self.nodes if name not in wanted]
        new = [name for name in wanted if name not in self.nodes]
        for name in gone:
            self.remove(name)
        for name in changed:
            self._leave(name, wanted[name])
        for name in new:
            self.add(wanted[name])
        return new + changed, gone + changed

    def add(self, node: Node) -> None:
        """Let a node join. Raises ConfigError if its id or URL is taken, or its URL is none."""
        name = node.spec.node_id
        urls = {known.url: known.spec.node_id for known in self.nodes.values()}
        if name in self.nodes:
            raise ConfigError(f"node {name}: there is one of that name already")
        if node.url in urls:
            raise ConfigError(f"node {name}: {urls[node.url]} has that URL already")
        pool = self._pool(node)
        self.nodes[name] = node
        if name in self.leaving:
            self.leaving[name] = node
            return
        shell = self._shell
        shell.pools[name] = pool
        shell.tell(NodeJoined(node.spec))
        shell.log.note("info", "node_joined", node=name)
        self._intake.add(node.spec, node.report_url)
        self.health.add(node.spec)

    def drain(self, node_id: NodeId) -> None:
        """Give a node no more work. Raises ConfigError if there is no such node."""
        self._known(node_id)
        self.health.nodes[node_id].drain(DRAINING)

    def resume(self, node_id: NodeId) -> None:
        """Give a drained node work again, once it answers. Raises ConfigError."""
        self._known(node_id)
        self.health.nodes[node_id].resume(DRAINING)

    def hold_off(self, unready: Collection[NodeId]) -> None:
        """Give no work to the nodes that are not ready, and again to those that were not."""
        for name in self.nodes:
            node = self.health.nodes[name]
            if name in unready:
                node.drain(NOT_READY)
            elif NOT_READY in node.drained_for:
                node.resume(NOT_READY)

    def remove(self, node_id: NodeId) -> None:
        """Drain a node and forget it when nothing runs there. Raises ConfigError."""
        self._known(node_id)
        usable = [node for name, node in self.nodes.items() if name != node_id]
        if not any(node.spec.role is Role.DECODE for node in usable):
            raise ConfigError(f"node {node_id} is the last decode node; add another one first")
        self._leave(node_id, None)

    def sweep(self) -> None:
        """Forget the nodes that leave and on which nothing runs any more."""
        shell = self._shell
        for name, successor in list(self.leaving.items()):
            shell.tell(NodeLeft(name))
            if name in shell.dispatcher.ledger.nodes:
                continue
            del self.leaving[name]
            self.health.remove(name)
            self._intake.remove(name)
            shell.pools.pop(name).close()
            shell.last_reports.pop(name, None)
            shell.takes_orders.discard(name)
            shell.log.note("info", "node_left", node=name)
            if successor is not None:
                del self.nodes[name]
                self.add(successor)

    def _leave(self, node_id: NodeId, successor: Node | None) -> None:
        self.drain(node_id)
        self.leaving[node_id] = successor
        if successor is None:
            del self.nodes[node_id]
        else:
            self.nodes[node_id] = successor
        self.sweep()

    def _known(self, node_id: NodeId) -> None:
        if node_id not in self.nodes:
            known = ", ".join(sorted(self.nodes))
            raise ConfigError(f"there is no node {node_id[:128]!r}; there are: {known}")

    def _pool(self, node: Node) -> NodePool:
        shell = self._shell
        return NodePool(node.spec.node_id, node.url, shell.settings, clock=shell.clock)
