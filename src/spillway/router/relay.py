"""One live request at the router: what it needs for its legs, and the relay of its answer.

The relay writes the engine's bytes to the client as they come, chunk framing included. It has no
task and awaits nothing: a read on one socket is a write on the other. Only the head is written
anew. Whatever decides anything is the owner's (`shell.py`).
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from spillway.clock import Clock
from spillway.core.decide import Reason, Route
from spillway.core.prefixes import Chain
from spillway.core.types import NodeId, RequestView, Slo
from spillway.router.fetch import Unchunker
from spillway.router.gaps import GapMeter
from spillway.router.heartbeat import Heartbeat
from spillway.router.http_client import Fault, Framing, ResponseHead, UpstreamConnection
from spillway.router.http_server import ClientConnection, Request, status_line
from spillway.router.metrics import RouterMetrics
from spillway.router.strain import NodeGaps, StreamGaps
from spillway.router.stream_start import is_failed_start
from spillway.wire.openai import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Fields,
    ParsedBody,
    error_body,
    usage_count,
)
from spillway.wire.report import TBT_HEADER, TTFT_HEADER

# What the client is told of a decision, by route and reason.
DECIDED_LINES = {
    (route.value, reason.value): b"x-spillway-route: %b\r\nx-spillway-reason: %b\r\n"
    % (route.value.encode(), reason.value.encode())
    for route in (Route.PREFILL, Route.DEFLECTED)
    for reason in Reason
}
TARGET_LINES = f"{TTFT_HEADER}: %g\r\n{TBT_HEADER}: %g\r\n".encode()
TAIL_READS = 3  # an engine may send the usage, [DONE] and the last chunk apart
TAIL_BYTES = 2048
LAST_CHUNK = b"0\r\n\r\n"
DONE = b"data: [DONE]"
ANSWER_HELD_BYTES_MAX = 65_536  # of an answer that is no stream; a longer one is passed on
# Aborts a connection with a reset, which no client can take for the end of an answer.
NO_LINGER = struct.pack("ii", 1, 0)


class Owner(Protocol):
    """Who is told how an exchange goes."""

    def first_byte(self, exchange: Exchange, *, is_stream: bool) -> None: ...

    def finished(self, exchange: Exchange, status: int) -> None: ...

    def refused(self, exchange: Exchange, status: int) -> None: ...

    def broke(self, exchange: Exchange, fault: Fault) -> None: ...

    def client_left(self, exchange: Exchange) -> None: ...


class Exchange:
    """One request, from its arrival to its last byte. It is an `AnswerSink` and a `Reader`.

    leg, node_id: the connection now at work for it, and the node that it leads to.
    route, reason: what was decided last; told to the client.
    chain: its prompt's leading blocks (`core.prefixes`); empty when nobody remembers prompts.
    prompt_bytes: what its prompt length was estimated from; 0 when that is exact.
    kv_params, kv_node_id: where the KV waits, and the node that said so; no parameters when there
        is none, or some decode node may have it.
    kv_since_s: when the prefill node said where the KV waits, or may have said so at the earliest.
    predicted_s, first_byte_s: TTFT by the last decision, and when it ended; 0 is not known.
    started: bytes of the answer have reached the client, so that nothing can be retried.
    reads: how often bytes came since; whoever looks for silence compares.
    """

    __slots__ = (
        "_clean_cut",
        "_close",
        "_framing",
        "_head",
        "_held",
        "_meters",
        "_remember",
        "_tail",
        "_write",
        "body",
        "chain",
        "conn",
        "fields",
        "first_byte_s",
        "headers",
        "id_line",
        "is_chat",
        "kv_node_id",
        "kv_params",
        "kv_since_s",
        "leg",
        "leg_since_s",
        "model",
        "node_id",
        "owner",
        "paused",
        "predicted_s",
        "prompt_bytes",
        "reads",
        "reads_seen",
        "reason",
        "request",
        "route",
        "started",
        "view",
    )

    def __init__(
        self,
        owner: Owner,
        conn: ClientConnection,
        request: Request,
        parsed: ParsedBody,
        prompt_bytes: int,
        view: RequestView,
        id_line: bytes,
        chain: Chain = (),
    ) -> None:
        self.owner = owner
        self.conn = conn
        self.request = request
        self.model = parsed.model
        self.is_chat = parsed.is_chat
        self.fields: Fields = parsed.fields
        self.prompt_bytes = prompt_bytes
        self.view = view
        self.id_line = id_line
        self.chain = chain
        self.headers = b"".join((*request.lines, id_line, target_lines(view.slo)))
        self.body = request.body
        self.kv_params = b""
        self.kv_since_s = view.arrival_s
        self.predicted_s = self.first_byte_s = 0.0
        self.leg: UpstreamConnection | None = None
        self.leg_since_s = view.arrival_s
        self.node_id: NodeId = ""
        self.kv_node_id: NodeId = ""
        self.route = self.reason = ""
        self.started = self.paused = self._close = self._clean_cut = False
        self.reads = self.reads_seen = 0
        self._head: ResponseHead | None = None
        self._held = b""
        self._meters: tuple[GapMeter | StreamGaps, ...] = ()
        self._framing = Framing.NONE
        self._tail: deque[bytes] = deque(maxlen=TAIL_READS)
        self._remember = self._tail.append
        self._write: Callable[[bytes], object] = conn.transport.write

    @property
    def decided_lines(self) -> bytes:
        """Return the header lines that tell the client its request id and what was decided."""
        return self.id_line + DECIDED_LINES.get((self.route, self.reason), b"")

    @property
    def status(self) -> int:
        """Return the status of the engine's answer, or 0 without one."""
        return self._head.status if self._head is not None else 0

    @property
    def is_prefilling(self) -> bool:
        """Whether the prefill leg is at work."""
        return self.route == "prefill" and not self.kv_params

    # --- AnswerSink: the leg that answers the client --------------------------------------------

    def on_head(self, head: ResponseHead) -> None:
        # Held back until a stream's first event, or the whole of any other answer, is there: until
        # then another node can still give it.
        if head.is_failure:
            self.drop_leg()
            self.owner.refused(self, head.status)
        else:
            self._head = head
            self._held = b""

    def on_body(self, data: bytes) -> None:
        if self.started:
            self.reads += 1
            self._remember(data if len(data) <= TAIL_BYTES else data[-TAIL_BYTES:])
            try:
                self._write(data)
            except RuntimeError:  # uvloop's word for a client that has just gone, as we will hear
                self.drop_leg()
        elif self._head is not None and self._head.is_sse:
            self._start_stream(self._held + data)
        elif len(self._held) + len(data) <= ANSWER_HELD_BYTES_MAX:
            self._held += data
        else:
            self._start(self._held + data)

    def on_end(self) -> None:
        self.leg = None
        if not self.started:
            if self._held and self._head is not None and self._head.is_sse:
                self._start_stream(self._held, is_all=True)
                if not self.started:
                    return
            else:
                self._start(self._held)
        if self._framing is Framing.UNTIL_CLOSE and not self.request.http10:
            self.conn.send(LAST_CHUNK)
        assert self._head is not None
        self.owner.finished(self, self._head.status)
        self.conn.answered(close=self._close)

    def on_fault(self, fault: Fault) -> None:
        if self.started and self.leg is not None:
            self._clean_cut = self.leg.is_between_chunks()
            if self._clean_cut and b"".join(self._tail).rstrip().endswith(DONE):
                self.conn.send(LAST_CHUNK)  # all was said but that it was all
                self.on_end()
                return
        self.leg = None
        self.owner.broke(self, fault)

    # --- Reader: what the client's connection says ----------------------------------------------

    def client_left(self) -> None:
        self.owner.client_left(self)

    def pause(self) -> None:
        self.paused = True
        if self.leg is not None:
            self.leg.pause()

    def resume(self) -> None:
        self.paused = False
        for meter in self._meters:
            meter.skip()
        if self.leg is not None:
            self.leg.resume()

    # --- what the owner does --------------------------------------------------------------------

    def drop_leg(self) -> None:
        """Stop the leg that is at work; its node sees the connection close."""
        leg, self.leg = self.leg, None
        if leg is not None:
            leg.abort()

    def cut_off(self) -> None:
        """Stop the leg at work in mid-answer, so that an error can end the answer properly."""
        if self.started and self.leg is not None:
            self._clean_cut = self.leg.is_between_chunks()
        self.drop_leg()

    def measure_gaps(self, clock: Clock, metrics: RouterMetrics) -> None:
        """Time the rest of the stream, read by read."""
        meter = GapMeter(self._write, clock, metrics, self.route, self.view.slo.tbt_s)
        self._write, self._meters = meter, (*self._meters, meter)

    def watch_gaps(self, clock: Clock, node: NodeGaps, heartbeat: Heartbeat) -> None:
        """Time the rest of the stream for what it says of its node."""
        meter = StreamGaps(self._write, clock, node, self.view.slo.tbt_s, heartbeat)
        self._write, self._meters = meter, (*self._meters, meter)

    def answer_whole(self, head: ResponseHead, content: bytes) -> None:
        """Pass on an answer that was collected: an engine's 4xx to the prefill leg."""
        self.conn.respond(
            self.request, head.status, content, b"".join(head.lines) + self.decided_lines
        )

    def answer_error(self, status: int, message: str, code: str, lines: bytes = b"") -> None:
        """Tell the client of a failure: with a status, or in the stream once that has begun."""
        body = error_body(status, message, code=code)
        if not self.started:
            lines += b"content-type: application/json\r\n" + self.decided_lines
            self.conn.respond(self.request, status, body, lines)
        elif self._head is not None and self._head.is_sse:
            self._end_stream_with(body)
        else:
            self._break_off()

    def output_tokens(self) -> int:
        """Return the completion tokens that the end of the answer states, or 0."""
        tail = self._tail
        return usage_count(tail[0] if len(tail) == 1 else b"".join(tail), COMPLETION_TOKENS)

    def prompt_tokens(self) -> int:
        """Return the prompt tokens that the end of the answer states, or 0."""
        return usage_count(b"".join(self._tail), PROMPT_TOKENS)

    # --- inside ---------------------------------------------------------------------------------

    def _start_stream(self, data: bytes, *, is_all: bool = False) -> None:
        """Write the head and the first bytes, unless they may be the engine's own failure."""
        assert self._head is not None
        is_chunked = self._head.framing is Framing.CHUNKED
        is_failed = is_failed_start(data, is_chunked=is_chunked, is_all=is_all)
        if is_failed is None:
            self._held = data
        elif is_failed:
            self.drop_leg()
            self.owner.refused(self, 500)  # what a status would have said, had it not been sent
        else:
            self._start(data)

    def _start(self, data: bytes) -> None:
        """Write the head, and the first bytes with it."""
        head, request, transport = self._head, self.request, self.conn.transport
        assert head is not None
        self.started = True
        self._framing = head.framing
        self._close = not request.keep_alive or self.conn.is_last
        if head.framing is Framing.LENGTH:
            framing = b"content-length: " + head.length + b"\r\n"
        elif request.http10 and head.framing is not Framing.NONE:
            framing, self._close = b"", True
            if head.framing is Framing.CHUNKED:
                self._write = _unchunked(self.conn.send)
        elif head.framing is Framing.NONE:
            framing = b"" if head.status in (204, 304) else b"content-length: 0\r\n"
        else:
            framing = b"transfer-encoding: chunked\r\n"
            if head.framing is Framing.UNTIL_CLOSE:
                self._write = _chunked(self.conn.send)
        end = b"connection: close\r\n\r\n" if self._close else b"\r\n"
        decided = DECIDED_LINES.get((self.route, self.reason), b"")
        first = (status_line(head.status), *head.lines, self.id_line, decided, framing, end)
        if self._write == transport.write:  # one system call for the head and the first bytes
            self.conn.send(b"".join((*first, data)))
        else:
            self.conn.send(b"".join(first))
            if data:
                self._write(data)
        self._remember(data[-TAIL_BYTES:])
        self.owner.first_byte(self, is_stream=head.is_sse)
        # No retry can need them any more, and a stream may stay open for long.
        self.body = self.kv_params = self.request.body = self.headers = self._held = b""
        self.fields = {}
        self.request.lines = []
        head.lines.clear()

    def _end_stream_with(self, error: bytes) -> None:
        """End a broken event stream with a typed error frame, if its framing allows one."""
        tail = b"".join(self._tail).removesuffix(b"\r\n")
        frame = b"data: " + error + b"\n\n"
        if not tail.endswith(b"\n\n"):  # the event that was cut ends here
            frame = b"\n\n" + frame
        if self.request.http10:
            self.conn.send(frame)
        elif self._clean_cut or self._framing is Framing.UNTIL_CLOSE:
            self.conn.send(b"%x\r\n%b\r\n%b" % (len(frame), frame, LAST_CHUNK))
        else:
            self._break_off()
            return
        self.conn.answered(close=self._close)

    def _break_off(self) -> None:
        """End an answer that cannot be completed so that the client sees that it is not."""
        raw = self.conn.transport.get_extra_info("socket")
        if raw is not None and self.request.http10:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
            self.conn.transport.abort()
        self.conn.answered(close=True)


@lru_cache(maxsize=256)
def target_lines(slo: Slo) -> bytes:
    """Return the header lines that tell an engine the targets; most requests share a few."""
    return TARGET_LINES % (slo.ttft_s * 1000, slo.tbt_s * 1000)


def _unchunked(write: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a writer that takes the chunk framing off, for a client of HTTP/1.0."""
    unchunker = Unchunker()

    def write_content(data: bytes) -> None:
        if content := unchunker.feed(data):
            write(content)

    return write_content


def _chunked(write: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Return a writer that adds chunk framing, for an engine that ends its answer by closing."""

    def write_chunk(data: bytes) -> None:
        write(b"%x\r\n%b\r\n" % (len(data), data))

    return write_chunk
