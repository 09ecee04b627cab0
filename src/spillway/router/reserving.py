"""Asks a node for leave before a deflection is sent to it, where several routers share the node.

While a node's reports name one router, nothing is asked: what this router knows is all there is.
With more, `wire.reserve` is one short question before the request itself. A node that declines says
how it stands; that is told to the dispatcher first, and then that the leg came to nothing, so that
the prompt is decided again at once on the node's own word. A question without an answer counts
as declined: a request is declined a bounded number of times and then sent unasked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.core.errors import NodeError
from spillway.core.events import LegFailed, NodeReported, StartDeflected
from spillway.core.latency import token_pairs
from spillway.core.reservation import UNLIMITED, Ask, Verdict
from spillway.core.types import NodeId
from spillway.router.fetch import Fetch
from spillway.router.heartbeat import Timer
from spillway.router.http_client import Fault, ResponseHead
from spillway.router.pool import NodePool
from spillway.router.relay import Exchange
from spillway.wire.report import to_state
from spillway.wire.reserve import decode_answer, reserve_target

if TYPE_CHECKING:
    from spillway.router.shell import Shell

ANSWER_BYTES_MAX = 64 * 1024
ANSWER_S_MAX = 0.5  # a node that is well answers in milliseconds


class Reserving:
    """Takes the dispatcher's orders to deflect.

    pools: where each reporting node is asked: where its reports are read.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.pools: dict[NodeId, NodePool] = {}
        key = shell.settings.engine_api_key
        self._lines = b"authorization: Bearer %b\r\n" % key.encode() if key else b""

    def take(self, order: StartDeflected) -> None:
        """Carry out an order, after the node has granted it if others share the node."""
        pool = self.pools.get(order.node_id)
        said = self._shell.last_reports.get(order.node_id)
        is_shared = said is not None and said.routers > 1
        if pool is None or not is_shared or order.backlog_tokens_max == UNLIMITED:
            self._shell.start_deflected(order)
            return
        exchange = self._shell.live[order.request_id]
        exchange.node_id, exchange.route = order.node_id, "deflected"
        exchange.leg_since_s = self._shell.dispatcher.now_s
        request = exchange.view
        tokens = request.uncached_tokens(order.node_id)
        ask = Ask(
            self._shell.router_id,
            order.dispatch_id,
            tokens,
            token_pairs(tokens, request.prompt_tokens - tokens),
            order.backlog_tokens_max,
        )
        question = Question(self._shell, exchange, order)
        target = reserve_target(ask).encode()
        question.leg = exchange.leg = pool.post(question, target, self._lines, b"")


class Question(Fetch):
    """One question, and what follows from its answer."""

    __slots__ = ("_exchange", "_order", "_shell", "_timer")

    def __init__(self, shell: Shell, exchange: Exchange, order: StartDeflected) -> None:
        super().__init__(ANSWER_BYTES_MAX)
        self._shell = shell
        self._exchange = exchange
        self._order = order
        self._timer = Timer(shell.heartbeat, ANSWER_S_MAX, self._late)

    def done(self, head: ResponseHead, content: bytes) -> None:
        try:
            answer = decode_answer(content)
        except NodeError:
            self._declined(f"http_{head.status}")
            return
        if answer.verdict is Verdict.GRANTED:
            self._end(answer.verdict.value)
            self._shell.start_deflected(self._order)
            return
        if answer.report is not None:
            shell, node_id = self._shell, self._order.node_id
            state = to_state(answer.report, shell.clock.now_s(), shell.router_id)
            shell.tell(NodeReported(state._replace(node_id=node_id)))
        self._declined(answer.verdict.value)

    def failed(self, fault: Fault) -> None:
        self._declined(fault.value)

    def _late(self) -> None:
        if self.leg is not None and self._exchange.leg is self.leg:
            self.leg.fail(Fault.SILENT)

    def _declined(self, kind: str) -> None:
        self._end(kind)
        request_id, node_id = self._order.request_id, self._order.node_id
        self._shell.tell(LegFailed(request_id, node_id, kind, refused=True, declined=True))

    def _end(self, kind: str) -> None:
        self._timer.cancel()
        self._exchange.leg = None
        self._shell.metrics.reservations[self._order.node_id, kind] += 1
