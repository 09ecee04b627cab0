"""Reads how a node without reports was started, where it tells.

vLLM shows its scheduler's settings on `/server_info` when it was started with
VLLM_SERVER_DEV_MODE=1. Elsewhere what is configured holds.
"""

from __future__ import annotations

from spillway.core.errors import NodeError
from spillway.core.events import ChunkingLearned
from spillway.core.types import ChunkMode, NodeId, Role
from spillway.router.dial import SERVER_INFO_S, key_lines
from spillway.router.question import Question
from spillway.router.shell import Shell
from spillway.wire.enginepages import SERVER_INFO_PATH, read_server_info


class StockSettings:
    """Asks each node once, and again after it was lost."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._asked: set[NodeId] = set()
        self._questions: dict[NodeId, Question] = {}

    def ask(self, node_id: NodeId) -> None:
        """The node has no reports: learn from its settings how it sizes chunks."""
        spec = self._shell.dispatcher.ledger.nodes[node_id].spec
        if node_id in self._asked or spec.role is not Role.DECODE:
            return
        self._asked.add(node_id)
        settings = self._shell.settings
        question = Question(
            lambda status, content: self._told(node_id, status, content),
            settings.answer_bytes_max,
            self._shell.heartbeat,
        )
        self._questions[node_id] = question
        pool = self._shell.pools[node_id]
        question.ask(pool, SERVER_INFO_PATH.encode(), key_lines(settings), SERVER_INFO_S)

    def forget(self, node_id: NodeId) -> None:
        """The node may have been started anew: what it was asked before is void."""
        self._asked.discard(node_id)
        question = self._questions.pop(node_id, None)
        if question is not None:
            question.cancel()

    def close(self) -> None:
        for question in self._questions.values():
            question.cancel()

    def _told(self, node_id: NodeId, status: int, content: bytes) -> None:
        del self._questions[node_id]
        if status != 200:
            return  # most engines have no such page
        try:
            scheduler = read_server_info(content).scheduler_config
        except NodeError:
            self._shell.metrics.upstream_errors[node_id, "server_info"] += 1
            return
        if not scheduler.has_plugin:
            tokens = scheduler.chunk_tokens_max
            self._shell.tell(ChunkingLearned(node_id, ChunkMode.STATIC, tokens))
