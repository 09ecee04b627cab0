"""Drives the dispatcher: turns what happens on sockets into facts, and its orders into requests.

Nothing is decided here. Each fact goes to `Dispatcher.handle` in the callback that learned it, and
the orders that come back are carried out before that callback returns.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from math import ceil, inf
from typing import Any

from spillway.clock import Clock
from spillway.core.dispatcher import Dispatcher
from spillway.core.errors import InvariantViolation, RequestError
from spillway.core.events import (
    AbortOnNode,
    AnswerError,
    ClientLeft,
    Event,
    FirstToken,
    LegFailed,
    LogDecision,
    NodeStrained,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    SetTimer,
    StartDecode,
    StartDeflected,
    StartPrefill,
)
from spillway.core.types import NodeId, RequestId
from spillway.router.admission import Admission
from spillway.router.breaker import Breaker
from spillway.router.decision_log import DecisionLog
from spillway.router.error_texts import error_text
from spillway.router.gate import Gate
from spillway.router.heartbeat import Heartbeat
from spillway.router.http_client import Fault
from spillway.router.http_server import ClientConnection, Request
from spillway.router.metrics import RouterMetrics
from spillway.router.pool import NodePool
from spillway.router.prefill_leg import PrefillLeg
from spillway.router.prefixes import PromptMemory
from spillway.router.relay import Exchange
from spillway.router.releasing import Releasing
from spillway.router.request_log import RequestLog
from spillway.router.reserving import Reserving
from spillway.router.settings import Classes, RouterSettings
from spillway.router.silence import overdue
from spillway.router.strain import StrainWatch
from spillway.router.tracing import Tracer
from spillway.wire.openai import decode_body, ordered_fields, prefill_body, with_order
from spillway.wire.order import EngineOrder, encode_order
from spillway.wire.report import CHUNKS_HEADER, DISPATCH_HEADER, NodeReport

KV_EXPIRED = "kv_expired"
BLAMELESS = (Fault.TOO_LATE.value, KV_EXPIRED)


class Shell:
    """The live driver of one dispatcher. It is an `Owner` and a `PrefillOwner` of exchanges.

    live: every request that has not ended.
    memory: of what was sent where; None unless the settings ask for it.
    last_reports: the last word of each node that reports.
    tracer: notes what traces need; None where there are none.
    takes_orders: nodes whose plug-in reports from a port of its own. Headers do not reach it inside
        a real engine, so its orders ride in the body: the one change made to a client's body there.
    on_refused: called with a node that refuses connections, before its request is moved on.
    on_tripped: called with a node that fails too many legs, likewise.
    on_violation: called when the dispatcher finds its own state contradictory.
    on_timer: called with the moment at which to tell the dispatcher `TimerFired`.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        pools: dict[NodeId, NodePool],
        classes: Classes,
        settings: RouterSettings,
        clock: Clock,
        decisions: DecisionLog,
    ) -> None:
        self.dispatcher = dispatcher
        self.pools = pools
        self.settings = settings
        self.clock = clock
        self.decisions = decisions
        self.router_id = os.urandom(4).hex()
        self.metrics = RouterMetrics()
        self.heartbeat = Heartbeat(clock)
        self.breaker = Breaker(settings)
        self.strain = StrainWatch(settings)
        self.log = RequestLog(settings.log_path, clock)
        self.last_reports: dict[NodeId, NodeReport] = {}
        self._streams = 0
        self.live: dict[RequestId, Exchange] = {}
        self.gate: Gate | None = None
        self.tracer: Tracer | None = None
        blocks_max = settings.prefix_blocks_max
        self.memory = PromptMemory(dispatcher.ledger.nodes, blocks_max) if blocks_max else None
        self.admission = Admission(settings, classes, clock, self.live, self.router_id, self.memory)
        self.models = self.admission.models
        self.ruler = self.admission.ruler
        self.takes_orders: set[NodeId] = set()
        self.reserving = Reserving(self)
        self.releasing = Releasing(self)
        self.on_refused: Callable[[NodeId], None] = lambda node_id: None
        self.on_tripped: Callable[[NodeId], None] = lambda node_id: None
        self.on_violation: Callable[[InvariantViolation], None] = lambda violation: None
        self.on_timer: Callable[[float], None] = lambda at_s: None
        self._dispatch_start = f"{DISPATCH_HEADER}: {self.router_id}:".encode()
        self._retry_line = b"retry-after: %d\r\n" % settings.retry_after_s
        self._orders: dict[type, Callable[[Any], None]] = {
            StartPrefill: self._start_prefill,
            StartDecode: self._start_decode,
            StartDeflected: self.reserving.take,
            AbortOnNode: self._abort,
            AnswerError: self._answer_error,
            LogDecision: self._log,
            SetTimer: lambda order: self.on_timer(order.at_s),
        }

    def tell(self, event: Event) -> None:
        """Give one fact to the dispatcher and carry out its orders."""
        try:
            orders = self.dispatcher.handle(event, self.clock.now_s())
        except InvariantViolation as violation:
            self.on_violation(violation)
            raise
        for order in orders:
            self._orders[type(order)](order)

    # --- from clients -------------------------------------------------------------------------

    def submit(self, conn: ClientConnection, request: Request, *, is_chat: bool) -> None:
        """Take up a completion or chat request, or refuse it with a 4xx."""
        try:
            if len(self.live) >= self.settings.requests_max:
                raise RequestError("too many requests are in progress; try again", status=429)
            exchange = self.admission.admit(self, conn, request, is_chat=is_chat)
            waits = self.gate is not None and self.gate.hold_back(exchange, request.client)
        except RequestError as error:
            conn.refuse(request, error, self._retry_line if error.status == 429 else b"")
            return
        self.live[exchange.view.request_id] = exchange
        conn.reader = exchange
        if self.tracer is not None:
            self.tracer.begin(exchange)
        if not waits:
            self.begin(exchange)

    def begin(self, exchange: Exchange) -> None:
        """Have it decided where a request runs, now."""
        self.tell(RequestArrived(exchange.view))

    def give_up(self, exchange: Exchange, reason: str) -> None:
        """Refuse a request that waited in vain."""
        self._end(exchange, "rejected")
        exchange.answer_error(503, error_text(503), reason, self._retry_line)

    def client_left(self, exchange: Exchange) -> None:
        self.releasing.give_up(exchange)
        self.tell(ClientLeft(exchange.view.request_id))
        self._end(exchange, "cancelled")

    # --- from engines -------------------------------------------------------------------------

    def first_byte(self, exchange: Exchange, *, is_stream: bool) -> None:
        now_s = exchange.first_byte_s = self.clock.now_s()
        view, metrics = exchange.view, self.metrics
        ttft_s = now_s - view.arrival_s
        metrics.ttft[exchange.route].observe(ttft_s)
        if exchange.predicted_s:
            metrics.ttft_ratio[exchange.route].observe(ttft_s / exchange.predicted_s)
        if is_stream:
            self._streams += 1
            if self._streams % self.settings.gap_sample_every == 0:
                exchange.measure_gaps(self.clock, metrics)
            if not self.dispatcher.ledger.nodes[exchange.node_id].view.reporting:
                node_gaps = self.strain.of(exchange.node_id)
                exchange.watch_gaps(self.clock, node_gaps, self.heartbeat)
            self.tell(FirstToken(view.request_id))

    def finished(self, exchange: Exchange, status: int) -> None:
        self.breaker.succeeded(exchange.node_id, self.dispatcher.now_s)
        output_tokens = exchange.output_tokens()
        self._end(exchange, "client_error" if status >= 400 else "finished", output_tokens)
        if exchange.route == "deflected":
            self.ruler.learn(
                exchange.model, exchange.is_chat, exchange.prompt_bytes, exchange.prompt_tokens()
            )
        self.tell(RequestFinished(exchange.view.request_id, output_tokens))

    def prefilled(self, exchange: Exchange, kv_params: bytes, prompt_tokens: int) -> None:
        exchange.kv_params, exchange.kv_node_id = kv_params, exchange.node_id
        exchange.kv_since_s = max(exchange.kv_since_s, self.heartbeat.came_after_s())
        self.breaker.succeeded(exchange.node_id, self.dispatcher.now_s)
        self.ruler.learn(exchange.model, exchange.is_chat, exchange.prompt_bytes, prompt_tokens)
        self.tell(PrefillFinished(exchange.view.request_id))

    def refused(self, exchange: Exchange, status: int) -> None:
        # An engine that refuses a request tells the prefill node that its KV is not wanted.
        self._leg_failed(exchange, f"http_{status}", refused=status == 503, kv_lost=True)

    def broke(self, exchange: Exchange, fault: Fault) -> None:
        if fault in (Fault.REFUSED, Fault.GONE):
            self.on_refused(exchange.node_id)
        # Once a decode node has seen the request it may have pulled the KV, and the prefill node
        # frees what was pulled.
        refused = fault.is_refusal
        self._leg_failed(exchange, fault.value, refused=refused, kv_lost=not refused)

    def _leg_failed(self, exchange: Exchange, reason: str, *, refused: bool, kv_lost: bool) -> None:
        node_id = exchange.node_id
        exchange.kv_params = b"" if kv_lost else exchange.kv_params
        self.metrics.upstream_errors[node_id, reason] += 1
        if self.tracer is not None:
            self.tracer.failed(exchange, reason)
        # A full node (503) is not a broken one, and late clients and old KV are not its fault.
        if not (refused or reason in BLAMELESS) and self.breaker.failed(
            node_id, self.clock.now_s()
        ):
            self.on_tripped(node_id)
        self.tell(
            LegFailed(
                exchange.view.request_id,
                node_id,
                reason,
                refused=refused,
                streaming=exchange.started,
                kv_lost=kv_lost,
            )
        )

    # --- orders -------------------------------------------------------------------------------

    def _start_prefill(self, order: StartPrefill) -> None:
        exchange = self._begin(order, "prefill")
        exchange.kv_params, exchange.kv_since_s = b"", exchange.leg_since_s
        settings = self.settings
        leg = PrefillLeg(self, exchange, settings.answer_bytes_max, settings.kv_block_tokens)
        fields = exchange.fields
        if order.node_id in self.takes_orders:
            fields = ordered_fields(fields, self._scalar(order, exchange))
        # The answer is read here, so it must not come compressed.
        lines = b"accept-encoding: identity\r\n" + self._lines(order)
        leg.leg = exchange.leg = self.pools[order.node_id].post(
            leg, exchange.request.target, exchange.headers + lines, prefill_body(fields)
        )

    def _start_decode(self, order: StartDecode) -> None:
        exchange = self._begin(order, "prefill")
        if self.dispatcher.now_s - exchange.kv_since_s > self.settings.kv_lease_s / 2:
            # It may be freed while it is fetched, and nothing would say so.
            self.releasing.give_up(exchange)
            self._leg_failed(exchange, KV_EXPIRED, refused=False, kv_lost=True)
            return
        body = decode_body(self._body(order, exchange), exchange.kv_params)
        # Never twice: what a node has begun to pull is gone, and other KV may lie in its place.
        self._answer_from(order, exchange, self._lines(order), body, may_resend=False)

    def start_deflected(self, order: StartDeflected) -> None:
        """Send a prompt to the decode node that has been chosen for it."""
        exchange = self._begin(order, "deflected")
        lines = self._lines(order)
        if order.chunks:
            plan = ",".join(f"{chunk}*{steps}" for chunk, steps in order.chunks)
            lines += f"{CHUNKS_HEADER}: {plan}\r\n".encode()
        self._answer_from(order, exchange, lines, self._body(order, exchange))

    def _begin(self, order: StartPrefill | StartDecode | StartDeflected, route: str) -> Exchange:
        exchange = self.live[order.request_id]
        exchange.node_id = order.node_id
        exchange.route = route
        exchange.leg_since_s = now_s = self.dispatcher.now_s
        if self.memory is not None:
            self.memory.sent(order.node_id, exchange.chain, now_s)
        return exchange

    def _body(self, order: StartDecode | StartDeflected, exchange: Exchange) -> bytes:
        """Return the client's own bytes, or with an order in them for a plug-in that reads it."""
        if order.node_id not in self.takes_orders:
            return exchange.body
        return with_order(exchange.body, exchange.fields, self._scalar(order, exchange))

    def _scalar(
        self, order: StartPrefill | StartDecode | StartDeflected, exchange: Exchange
    ) -> str:
        slo = exchange.view.slo
        return encode_order(EngineOrder(self.router_id, order.dispatch_id, slo.tbt_s))

    def _lines(self, order: StartPrefill | StartDecode | StartDeflected) -> bytes:
        line = b"%b%d\r\n" % (self._dispatch_start, order.dispatch_id)
        if self.tracer is not None:
            line += self.tracer.leg(order, self.live[order.request_id])
        return line

    def _answer_from(
        self,
        order: StartDecode | StartDeflected,
        exchange: Exchange,
        lines: bytes,
        body: bytes,
        *,
        may_resend: bool = True,
    ) -> None:
        """Start the leg whose answer is relayed to the client."""
        encoding = exchange.request.own.get(b"accept-encoding")
        if encoding is not None:
            lines += b"accept-encoding: %b\r\n" % encoding
        exchange.leg = self.pools[order.node_id].post(
            exchange,
            exchange.request.target,
            exchange.headers + lines,
            body,
            may_resend=may_resend,
        )

    def _abort(self, order: AbortOnNode) -> None:
        exchange = self.live.get(order.request_id)
        if exchange is not None:
            exchange.drop_leg()

    def _answer_error(self, order: AnswerError) -> None:
        exchange = self.live[order.request_id]
        self.releasing.give_up(exchange)
        exchange.drop_leg()
        self._end(exchange, "failed" if exchange.route else "rejected")
        wait_s = max(self.settings.retry_after_s, ceil(order.retry_after_s))
        lines = b"retry-after: %d\r\n" % wait_s if order.status == 503 else b""
        exchange.answer_error(order.status, error_text(order.status), order.reason, lines)

    def _log(self, order: LogDecision) -> None:
        decision = order.decision
        reason = decision.reason.value
        self.metrics.decisions[reason] += 1
        exchange = self.live[order.request.request_id]
        if not exchange.reason and decision.route in self.metrics.wait:  # its first
            self.metrics.wait[decision.route].observe(order.decided_at_s - exchange.view.arrival_s)
        exchange.reason = reason
        exchange.predicted_s = 0.0
        predicted_s = decision.estimate.total_s
        if 0.0 < predicted_s < inf and decision.route in self.metrics.predicted_ttft:
            exchange.predicted_s = predicted_s  # some policies do not predict
            self.metrics.predicted_ttft[decision.route].observe(predicted_s)
        if decision.plan is not None:
            self.metrics.predicted_step[decision.route].observe(decision.plan.step_s_max)
        if decision.shadow is not None:
            self.metrics.watched(decision.shadow.decision)
        if self.tracer is not None:
            self.tracer.decided(order)
        self.decisions.add(order)

    def _end(self, exchange: Exchange, outcome: str, output_tokens: int = 0) -> None:
        view = exchange.view
        del self.live[view.request_id]
        self.metrics.requests[exchange.route, outcome] += 1
        if self.tracer is not None:
            self.tracer.end(exchange, outcome, output_tokens)
        if self.log.is_wanted:
            self.log.ended(self.clock.now_s(), exchange, outcome, output_tokens)
        if self.gate is not None:
            self.gate.ended(exchange)

    def stop(self) -> None:
        """Give up every request: its leg is dropped, and its client told so."""
        for exchange in list(self.live.values()):
            exchange.cut_off()
            with suppress(InvariantViolation):  # `on_violation` has heard of it; all are answered
                self.tell(ClientLeft(exchange.view.request_id))
            self._end(exchange, "cancelled")
            exchange.answer_error(503, "the router is shutting down", "shutting_down")

    # --- time ---------------------------------------------------------------------------------

    def sweep(self, now_s: float) -> None:
        """Give up on legs that have been silent for too long, or that no client waits for."""
        if self.gate is not None:
            self.gate.sweep(now_s)
        for node_id, is_strained in self.strain.sweep(now_s):
            self.metrics.strains[node_id] += is_strained
            self.tell(NodeStrained(node_id, is_strained))
        for exchange in list(self.live.values()):
            leg = exchange.leg
            if leg is None and not exchange.node_id and now_s >= exchange.view.deadline_s:
                late = Fault.TOO_LATE.value  # held back all the while
                self.tell(LegFailed(exchange.view.request_id, "", late))
                continue
            fault = overdue(exchange, self.settings, now_s)
            if leg is not None and fault is not None:
                self.releasing.give_up(exchange)
                leg.fail(fault)
