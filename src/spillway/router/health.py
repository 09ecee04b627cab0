"""Whether each node is there: asks `GET /health` at intervals, and which models it serves.

A node is lost after several failures in a row, or at once when it refuses a connection or its legs
fail too often (`breaker.py`); it is back with the first good answer after its time. A lost node is
asked on, at the same pace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from spillway.core.errors import NodeError
from spillway.core.events import NodeBack, NodeLost
from spillway.core.types import NodeId, NodeSpec, Role
from spillway.router.http_client import Fault
from spillway.router.question import Question
from spillway.router.shell import Shell
from spillway.router.silence import give_up_waiting
from spillway.wire.openai import MODELS_PATH, read_models

HEALTH_TARGET = b"/health"
BREAKER = "breaker"  # why a node was lost, when its legs failed


class NodeHealth:
    """What is known of one node, and the questions that keep it so.

    on_back: called when a lost node answers again.
    """

    def __init__(self, shell: Shell, spec: NodeSpec, on_back: Callable[[], None]) -> None:
        self._shell = shell
        self._settings = shell.settings
        self._pool = shell.pools[spec.node_id]
        self.node_id: NodeId = spec.node_id
        self._lists_models = spec.role is Role.DECODE
        self._on_back = on_back
        key = shell.settings.engine_api_key
        self._lines = b"authorization: Bearer %b\r\n" % key.encode() if key else b""
        self._failures = 0
        self.is_lost = False
        self.is_up = False  # only once it has answered
        self.drained_for: set[str] = set()  # reasons
        self._models_due_s = 0.0
        self._health: Question | None = None
        self._models: Question | None = None
        if self._lists_models:
            shell.models.expect(spec.node_id)

    def check(self) -> None:
        """Ask once, unless an answer is still awaited."""
        if self._health is None:
            self._health = self._ask(HEALTH_TARGET, self._told_health)

    def refused(self) -> None:
        """A request found that the node refuses connections."""
        self._lose(Fault.REFUSED.value, is_mute=False)

    def tripped(self) -> None:
        """Its legs fail although it answers /health: leave it alone for a while."""
        shell = self._shell
        if not self.is_lost:
            shell.breaker.open(self.node_id, shell.clock.now_s())
            self._lose(BREAKER, is_mute=False)

    def drain(self, reason: str) -> None:
        """Take the node out of use until `resume` for that reason, whatever it answers."""
        self.drained_for.add(reason)
        self._lose(reason, is_mute=False)

    def resume(self, reason: str) -> None:
        """Ask it anew: without another reason it is back with the next good answer."""
        self.drained_for.discard(reason)
        self.check()

    @property
    def is_draining(self) -> bool:
        """Whether there is a reason to keep it out of use."""
        return bool(self.drained_for)

    def close(self) -> None:
        for question in (self._health, self._models):
            if question is not None:
                question.cancel()

    def _ask(self, target: bytes, answered: Callable[[int, bytes], None]) -> Question:
        question = Question(answered, self._settings.answer_bytes_max, self._shell.heartbeat)
        question.ask(self._pool, target, self._lines, self._settings.health_timeout_s)
        return question

    def _told_health(self, status: int, content: bytes) -> None:
        self._health = None
        if 200 <= status < 300:
            self._failures = 0
            may_return = self._shell.breaker.may_return(self.node_id, self._shell.clock.now_s())
            if may_return and not self.is_draining:
                self._found()
            return
        self._failures += 1
        reason = content.decode() if status == 0 else f"http_{status}"
        self._shell.metrics.upstream_errors[self.node_id, f"health_{reason}"] += 1
        if reason == Fault.REFUSED.value:
            self.refused()
        elif self._failures >= self._settings.health_failures_max:
            self._lose(reason, is_mute=status == 0)

    def _lose(self, reason: str, *, is_mute: bool) -> None:
        """Take the node out of use.

        is_mute: it says nothing any more, so what waits for it waits in vain. A node that refuses
        may be shutting down in good order, and one that answers an error still has its connections.
        """
        if self.is_lost:
            return
        self.is_lost, self.is_up = True, False
        if self._lists_models:
            self._shell.models.forget(self.node_id)
        self._shell.log.note("warning", "node_lost", node=self.node_id, cause=reason)
        self._shell.last_reports.pop(self.node_id, None)
        if self._shell.memory is not None:
            self._shell.memory.lost(self.node_id)
        self._shell.tell(NodeLost(self.node_id, reason))
        if is_mute:
            give_up_waiting(self._shell.live, self.node_id)

    def _found(self) -> None:
        self.is_up = True
        if self.is_lost:
            self.is_lost = False
            self._models_due_s = 0.0
            if self._lists_models:
                self._shell.models.expect(self.node_id)
            self._shell.log.note("info", "node_back", node=self.node_id)
            self._shell.tell(NodeBack(self.node_id))
            self._on_back()
        if self._lists_models:
            self._check_models()

    def _check_models(self) -> None:
        now_s = self._shell.clock.now_s()
        due = now_s >= self._models_due_s or self._shell.models.was_missed
        if due and self._models is None:
            self._models_due_s = now_s + self._settings.models_interval_s
            self._models = self._ask(MODELS_PATH.encode(), self._told_models)

    def _told_models(self, status: int, content: bytes) -> None:
        self._models = None
        self._shell.models.was_missed = False
        try:
            models = read_models(content) if status == 200 else None
        except NodeError:
            models = None
        if models is None:
            # Nothing is forgotten: the list is only as old as it is. The next check asks again.
            self._models_due_s = 0.0
            self._shell.metrics.upstream_errors[self.node_id, "models"] += 1
        elif not self.is_lost:
            self._shell.models.tell(self.node_id, models)


class HealthWatch:
    """All nodes' health, asked at one pace."""

    def __init__(self, shell: Shell, specs: Iterable[NodeSpec]) -> None:
        self._shell = shell
        self.on_back: Callable[[NodeId], None] = lambda node_id: None
        self.nodes = {spec.node_id: self._node(spec) for spec in specs}
        shell.on_refused = self._refused
        shell.on_tripped = self._tripped

    def check(self) -> None:
        """Ask every node."""
        for node in self.nodes.values():
            node.check()

    def close(self) -> None:
        for node in self.nodes.values():
            node.close()

    def add(self, spec: NodeSpec) -> None:
        """Watch one more node, which is lost until it answers."""
        node = self.nodes[spec.node_id] = self._node(spec)
        node.is_lost = True
        self._shell.models.forget(spec.node_id)
        node.check()

    def remove(self, node_id: NodeId) -> None:
        """Watch a node no more."""
        self.nodes.pop(node_id).close()

    def _refused(self, node_id: NodeId) -> None:
        if node_id in self.nodes:
            self.nodes[node_id].refused()

    def _tripped(self, node_id: NodeId) -> None:
        """Eject an outlier. The last usable node of a role is none, however badly it does."""
        nodes = self._shell.dispatcher.ledger.nodes
        role = nodes[node_id].spec.role
        others = (node for node in nodes.values() if node.spec.role is role)
        if any(node.view.usable for node in others if node.spec.node_id != node_id):
            self._shell.metrics.ejections[node_id] += 1
            self.nodes[node_id].tripped()
        else:
            self._shell.metrics.ejections_withheld[node_id] += 1

    def _node(self, spec: NodeSpec) -> NodeHealth:
        return NodeHealth(self._shell, spec, lambda: self.on_back(spec.node_id))
