"""What becomes of each request, for its trace: noted while it runs, made spans of elsewhere.

A trace goes on where the client's `traceparent` says (W3C Trace Context), and each leg passes on
the id of its own span. Whether a trace is kept is the client's choice, or drawn when it begins
here. The hot path notes a few moments; `otlp.py` does the rest in a thread.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from typing import NamedTuple

from spillway.clock import Clock, unix_s
from spillway.core.decide import Decision, Route
from spillway.core.events import LogDecision, StartDecode, StartDeflected, StartPrefill
from spillway.core.types import NodeId, RequestId
from spillway.router.relay import Exchange
from spillway.wire.tracingconfig import TracingConfig

PARENT_NAME, STATE_NAME = b"traceparent:", b"tracestate:"
PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.A)
SAMPLED = 0x01
DRAW_BITS = 64  # of the trace id, as TraceIdRatioBased compares them
LEGS_MAX = 16
QUEUE_FULL = "queue_full"


class Parent(NamedTuple):
    """The span of the client that a request belongs to. Ids are lower-case hexadecimal."""

    trace_id: str
    span_id: str
    is_sampled: bool


class Leg:
    """One request to an engine. until_s: 0 while it runs.  fault: why it failed, or ""."""

    __slots__ = ("fault", "kind", "node_id", "since_s", "span_id", "until_s")

    def __init__(self, kind: str, node_id: NodeId, since_s: float) -> None:
        self.kind = kind
        self.node_id = node_id
        self.since_s = since_s
        self.until_s = 0.0
        self.fault = ""
        self.span_id = os.urandom(8).hex()


class Trace:
    """What is known of a request that runs. decision: the last one that was not to wait."""

    __slots__ = (
        "decided_s",
        "decision",
        "held",
        "legs",
        "parent_id",
        "span_id",
        "state",
        "trace_id",
    )

    def __init__(self, trace_id: str, parent_id: str, state: str) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id
        self.state = state
        self.span_id = os.urandom(8).hex()
        self.legs: list[Leg] = []
        self.decision: Decision | None = None
        self.decided_s = 0.0
        self.held = False


class Traced(NamedTuple):
    """A request that ended at `ended_s` of the router's clock. Times are seconds, 0 is unknown.

    unix_offset_s: from that clock to the time since 1970.  status: of the engine's answer.
    """

    trace: Trace
    ended_s: float
    unix_offset_s: float
    request_id: RequestId
    path: str
    model: str
    outcome: str
    status: int
    class_name: str
    is_chat: bool
    prompt_tokens: int
    output_tokens: int
    output_tokens_max: int
    arrival_s: float
    first_byte_s: float
    predicted_s: float


class Tracer:
    """The traces of the requests that run.

    ended: those that wait to be sent.  dropped: by kind; counts requests, each with all its spans.
    """

    def __init__(self, config: TracingConfig, clock: Clock) -> None:
        self._clock = clock
        self._draw_below = round(config.sample_frac * (1 << DRAW_BITS))
        self._queue_max = config.queue_max
        self._live: dict[RequestId, Trace] = {}
        self.ended: deque[Traced] = deque()
        self.dropped: Counter[str] = Counter({QUEUE_FULL: 0})
        self.sent = 0

    def begin(self, exchange: Exchange) -> None:
        """A request was taken up: whose trace is it, and is that kept?"""
        lines = exchange.request.lines
        parents = [line for line in lines if line[:12].lower() == PARENT_NAME]
        states = [line for line in lines if line[:11].lower() == STATE_NAME]
        parent = read_parent(parents[0][12:].strip()) if len(parents) == 1 else None
        if parent is None:
            # What cannot be read cannot be gone on with, and the state belongs to it.
            _without(exchange, parents + states)
            trace_id = os.urandom(16).hex()
            if int(trace_id[16:], 16) >= self._draw_below:
                span_id = os.urandom(8).hex()  # says to the engines too that this one is not kept
                exchange.headers += b"traceparent: 00-%b-%b-00\r\n" % (
                    trace_id.encode(),
                    span_id.encode(),
                )
                return
            self._live[exchange.view.request_id] = Trace(trace_id, "", "")
        elif parent.is_sampled:
            _without(exchange, parents)
            state = b",".join(line[11:].strip() for line in states).decode("latin-1")
            trace = Trace(parent.trace_id, parent.span_id, state)
            self._live[exchange.view.request_id] = trace

    def decided(self, order: LogDecision) -> None:
        """A policy said where a request goes, or that it waits."""
        trace = self._live.get(order.request.request_id)
        if trace is None:
            return
        if order.decision.route is Route.HELD:
            trace.held = True
        else:
            trace.decision = order.decision
            trace.decided_s = self._clock.now_s()

    def leg(self, order: StartPrefill | StartDecode | StartDeflected, exchange: Exchange) -> bytes:
        """A leg begins: return the header line that makes its engine's spans part of the trace."""
        trace = self._live.get(order.request_id)
        if trace is None or len(trace.legs) >= LEGS_MAX:
            return b""
        now_s = exchange.leg_since_s
        if trace.legs and not trace.legs[-1].until_s:
            before = trace.legs[-1]
            before.until_s = exchange.kv_since_s if before.kind == "prefill" else now_s
        kind = "decode" if isinstance(order, StartDecode) else exchange.route
        leg = Leg(kind, order.node_id, now_s)
        trace.legs.append(leg)
        return f"traceparent: 00-{trace.trace_id}-{leg.span_id}-01\r\n".encode()

    def failed(self, exchange: Exchange, fault: str) -> None:
        """The leg at work failed."""
        trace = self._live.get(exchange.view.request_id)
        if trace is not None and trace.legs:
            leg = trace.legs[-1]
            leg.until_s = leg.until_s or self._clock.now_s()
            leg.fault = fault

    def end(self, exchange: Exchange, outcome: str, output_tokens: int) -> None:
        """A request is over: its spans can be made and sent."""
        view = exchange.view
        trace = self._live.pop(view.request_id, None)
        if trace is None:
            return
        if len(self.ended) >= self._queue_max:
            self.dropped[QUEUE_FULL] += 1
            return
        now_s = self._clock.now_s()
        self.ended.append(
            Traced(
                trace,
                now_s,
                unix_s() - now_s,
                view.request_id,
                exchange.request.target.partition(b"?")[0].decode("latin-1"),
                exchange.model,
                outcome,
                exchange.status,
                view.class_name,
                exchange.is_chat,
                view.prompt_tokens,
                output_tokens,
                view.output_tokens_max,
                view.arrival_s,
                exchange.first_byte_s,
                exchange.predicted_s,
            )
        )


def read_parent(value: bytes) -> Parent | None:
    """Return what a `traceparent` says; None of one that is to be ignored (W3C, 3.2.2)."""
    found = PARENT.fullmatch(value)
    if found is None or (found[1] == b"00" and found[5]):
        return None
    trace_id, span_id = found[2].decode(), found[3].decode()
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(trace_id, span_id, bool(int(found[4], 16) & SAMPLED))


def _without(exchange: Exchange, lines: list[bytes]) -> None:
    """Take header lines off what goes to the engines."""
    for line in lines:
        exchange.headers = exchange.headers.replace(line, b"", 1)
