"""The engine side of HTTP/1.1: the protocol of one connection.

A connection hands its owner the response head once, then the body's bytes exactly as they came,
chunk framing included. httptools sees the same bytes, but only to judge them and to learn where the
message ends: no callback of ours runs per header or per chunk. The owner is any `AnswerSink`.
"""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Protocol, cast

import httptools
import msgspec

from spillway.router.head_lines import (
    CODING,
    CONNECTION,
    CONTENT_TYPE,
    LENGTH,
    PASSED,
    HeadLines,
)

HEAD_BYTES_MAX = 64 * 1024
HTTP1, INTERIM = b"HTTP/1.", b"HTTP/1.1 1"  # every head; one before the head
LAST_CHUNK, LAST_LINES = b"0\r\n\r\n", b"\r\n\r\n"


class Fault(StrEnum):
    """How a leg can go wrong below HTTP. Metrics count by these words."""

    REFUSED = "connection_refused"
    GONE = "gone"  # it had the request, and now nobody is there
    UNREACHABLE = "unreachable"
    CONNECT_TIMEOUT = "connect_timeout"
    NO_ANSWER = "closed_without_answer"
    BROKEN = "broken_off"
    BAD_RESPONSE = "bad_response"
    SILENT = "silent"
    NO_KV_PARAMS = "no_kv_params"
    TOO_LATE = "deadline_passed"  # the client's patience is over; no fault of the node

    @property
    def is_refusal(self) -> bool:
        """Whether the node certainly did not see the request."""
        return self in (Fault.REFUSED, Fault.UNREACHABLE, Fault.CONNECT_TIMEOUT)


class Framing(StrEnum):
    """How the end of a body is told."""

    NONE = "none"  # there is no body
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until_close"


class ResponseHead(msgspec.Struct, frozen=True):
    """An engine's response head, as far as it concerns a client.

    A struct costs a third of a named tuple to make: its constructor is not Python.

    lines: header lines to pass on, each with its CRLF.
    length: the value of Content-Length, for Framing.LENGTH.
    """

    status: int
    lines: list[bytes]
    framing: Framing
    length: bytes
    is_sse: bool

    @property
    def is_failure(self) -> bool:
        """Whether the engine failed, and not the client; no engine has a reason to redirect."""
        return self.status >= 500 or 300 <= self.status < 400


class AnswerSink(Protocol):
    """Who gets an answer. After `on_end` or `on_fault` nothing more comes."""

    def on_head(self, head: ResponseHead) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_fault(self, fault: Fault) -> None: ...


class Keeper(Protocol):
    """Where connections come from and go back to.

    head_lines: what the header lines of the engine mean.
    """

    @property
    def head_lines(self) -> HeadLines: ...

    def release(self, conn: UpstreamConnection) -> None: ...

    def forget(self, conn: UpstreamConnection) -> None: ...

    def reopen(self, conn: UpstreamConnection) -> None: ...


_IDLE, _CONNECTING, _WAITING, _HEAD, _BODY, _CLOSED = range(6)


class UpstreamConnection(asyncio.Protocol):
    """One connection to one engine, carrying one exchange at a time."""

    __slots__ = (
        "_complete",
        "_framing",
        "_head",
        "_keep_alive",
        "_keeper",
        "_may_resend",
        "_overrun",
        "_parser",
        "_paused",
        "_request",
        "_resent",
        "_reused",
        "_sink",
        "_state",
        "_transport",
        "idle_since_s",
        "opening",
    )

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._sink: AnswerSink | None = None
        self._request: tuple[bytes, bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._state = _CONNECTING
        self._reused = self._paused = self._resent = self._may_resend = False
        self.idle_since_s = 0.0
        self.opening: asyncio.Task[None] | None = None
        self._head = b""

    def _start_parsing(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head = b""
        self._framing = Framing.NONE
        self._complete = self._overrun = self._keep_alive = False

    # --- what the owner does ------------------------------------------------------------------

    def begin(self, sink: AnswerSink, head: bytes, body: bytes, *, may_resend: bool) -> None:
        """Send a request, now or as soon as the connection stands.

        may_resend: whether the node may get it a second time, should a connection that was used
        before turn out to be dead.
        """
        self._sink = sink
        self._may_resend = may_resend
        self._resent = False
        # Kept until the first byte comes back, so that a stale connection costs one free retry.
        self._request = (head, body)
        transport = self._transport
        if transport is not None:
            self._reused = True
            self._state = _WAITING
            transport.writelines(self._request)

    def abort(self) -> None:
        """Drop the exchange and the connection at once; the owner hears nothing more."""
        self._sink = None
        self._close()

    def fail(self, fault: Fault) -> None:
        """Tell the owner what is wrong, and drop the connection."""
        if self._resent and fault.is_refusal:
            fault = Fault.GONE  # it had been sent before: the node may have begun
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_fault(fault)
        self._close()

    @property
    def is_open(self) -> bool:
        """Whether the connection can be used; one that broke is told of a little later."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_connecting(self) -> bool:
        """Whether nothing of the request has been sent yet, to anybody."""
        return self._state == _CONNECTING

    def pause(self) -> None:
        """Stop reading, because the client does not keep up."""
        if self._transport is not None and self.is_open:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self.is_open and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def is_between_chunks(self) -> bool:
        """Return whether a chunked body broke off where a new chunk could begin.

        The parser knows, but only tells the end of a message: so it is shown one. Its message is
        over either way, so this is the last thing to ask of it.
        """
        if self._framing is not Framing.CHUNKED or self._complete:
            return False
        try:
            self._parser.feed_data(b"0\r\n\r\n")
        except httptools.HttpParserError:
            return False
        return self._complete

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What a loop hands to a stream protocol; uvloop's class only looks like asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._start_parsing()
        if self._state == _CLOSED:  # aborted while connecting
            self._transport.abort()
        elif self._request is not None:
            self._state = _WAITING
            self._transport.writelines(self._request)

    def data_received(self, data: bytes) -> None:
        if self._state == _BODY:  # per chunk: as few calls as can be
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                self.fail(Fault.BAD_RESPONSE)
                return
            if self._overrun or (self._complete and runs_on(data, self._framing)):
                self.fail(Fault.BAD_RESPONSE)
                return
            self._sink.on_body(data)  # type: ignore[union-attr]  # the state says that it is set
            if self._complete and self._state == _BODY:
                self._finish()
        elif self._state in (_WAITING, _HEAD):
            self._take_head(data)
        elif self._state == _IDLE:  # an engine has nothing to say unasked
            self._keeper.forget(self)
            self._close()

    def eof_received(self) -> None:
        if self._state == _IDLE:  # gone before the next request takes it from the pool
            self._keeper.forget(self)
            self._close()

    def connection_lost(self, exc: Exception | None) -> None:
        state = self._state
        self._transport = None
        if state == _IDLE:
            self._keeper.forget(self)
            self._close()
        elif state == _WAITING and self._reused and self._may_resend:
            self._reused = False
            self._resent = True
            self._keeper.reopen(self)
        elif state == _WAITING:
            self.fail(Fault.NO_ANSWER)
        elif state == _BODY and self._framing is Framing.UNTIL_CLOSE and exc is None:
            self._finish()
        elif state != _CLOSED:
            self.fail(Fault.BROKEN)
        del self._parser  # breaks the cycle of parser and connection

    # --- httptools callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._overrun = self._complete  # a second message where one was asked for

    def on_message_complete(self) -> None:
        self._complete = True

    # --- inside -------------------------------------------------------------------------------

    def _take_head(self, data: bytes) -> None:
        self._state = _HEAD
        self._request = None
        if self._head:
            data, self._head = self._head + data, b""
        end = data.find(b"\r\n\r\n") + 4
        while end >= 4 and data.startswith(INTERIM):  # 100 or 103: the answer follows
            if not self._feed(data[:end]):
                return
            if self._parser.get_status_code() == 101:  # nobody asked for another protocol
                self.fail(Fault.BAD_RESPONSE)
                return
            data = data[end:]
            self._complete = False
            end = data.find(b"\r\n\r\n") + 4
        if not HTTP1.startswith(data[: len(HTTP1)]):  # nonsense may never come to an end
            self.fail(Fault.BAD_RESPONSE)
        elif end < 4:
            self._head = data
            if len(data) > HEAD_BYTES_MAX:
                self.fail(Fault.BAD_RESPONSE)
        elif self._feed(data):
            self._announce(data[:end], data[end:])

    def _feed(self, data: bytes) -> bool:
        """Show bytes to the parser. Returns False if that was the end of the exchange."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.fail(Fault.BAD_RESPONSE)
            return False
        if self._overrun:
            self.fail(Fault.BAD_RESPONSE)
            return False
        return True

    def _announce(self, head: bytes, rest: bytes) -> None:
        """Tell the owner of a valid head, and of what came of the body with it."""
        told = self._read(head)
        if told is None or (self._complete and runs_on(rest, told.framing, told.length)):
            self.fail(Fault.BAD_RESPONSE)
            return
        self._state = _BODY
        sink = self._sink
        assert sink is not None
        sink.on_head(told)
        if rest and self._state == _BODY:
            sink.on_body(rest)
        if self._complete and self._state == _BODY:
            self._finish()

    def _read(self, head: bytes) -> ResponseHead | None:
        """Return what a head says, and note what it says of the connection.

        None: no final status, or a coding that is not `chunked` alone, whose end cannot be told.
        """
        known = self._keeper.head_lines
        framing, length, is_sse = Framing.NONE, b"", False
        keep_alive = head.startswith(b"HTTP/1.1")
        lines = []
        for line in head.split(b"\r\n")[1:-2]:
            kind, value = known[line]
            if kind == PASSED:
                lines.append(value)
            elif kind == CONTENT_TYPE:
                is_sse = value[14:].startswith(b"text/event-stream")
                lines.append(value)
            elif kind == LENGTH:
                framing, length = Framing.LENGTH, value
            elif kind == CODING:
                if value != b"chunked":
                    return None
                framing = Framing.CHUNKED
            elif kind == CONNECTION:
                keep_alive = keep_alive and value == b"keep-alive"
        if framing is Framing.NONE and not self._complete:
            framing = Framing.UNTIL_CLOSE
        self._framing, self._keep_alive = framing, keep_alive
        status = self._parser.get_status_code()
        return ResponseHead(status, lines, framing, length, is_sse) if 200 <= status < 600 else None

    def _finish(self) -> None:
        sink, self._sink = self._sink, None
        if self._keep_alive and self._transport is not None:
            if self._paused:
                self.resume()
            self._state = _IDLE
            self._complete = False
            self._framing = Framing.NONE
            self._keeper.release(self)
        else:
            self._close()
        if sink is not None:
            sink.on_end()

    def _close(self) -> None:
        self._state, self._request, self._head = _CLOSED, None, b""
        if self.opening is not None:
            self.opening.cancel()
            self.opening = None  # its last words hold frames that know this connection
        if self._transport is not None:
            self._transport.abort()


def runs_on(data: bytes, framing: Framing, length: bytes = b"") -> bool:
    """Whether empty lines follow the end of a body, which `data` holds.

    httptools lets them stand before the next message; a client may take them for its beginning.
    length: of a body that is all in `data`; one that came in several reads is not looked at.
    """
    if framing is Framing.CHUNKED:
        ends = data.endswith(LAST_LINES) and not data.endswith(b"\r\n" + LAST_LINES)
        return not ends and not LAST_CHUNK.endswith(data)
    return len(data) > int(length) if length else framing is Framing.NONE and data != b""
