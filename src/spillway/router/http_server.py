"""The client side of HTTP/1.1: reads whole requests, one at a time, and writes what it is given.

A connection parses a request within its limits, hands it to the front, and serves the next one
when that is answered. Requests sent ahead (pipelining) are parsed and wait; a client that sends
too far ahead is no longer read. It knows nothing of engines.
"""

from __future__ import annotations

import asyncio
from collections import deque
from http import HTTPStatus
from math import inf
from typing import Protocol, cast

import httptools

from spillway.core.errors import RequestError
from spillway.router.settings import RouterSettings
from spillway.wire.openai import error_body

AHEAD_BYTES_MAX = 64 * 1024
WRITE_BUFFER_BYTES = 64 * 1024
LINGER_S = 2.0

STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
JSON_TYPE = b"content-type: application/json\r\n"

# Read here, and therefore not among the lines that go through to the engine. Hop-by-hop headers
# are among them (RFC 9110, 7.6.1), and what only the router may say.
_OWN_HEADERS = frozenset(
    b"host connection keep-alive proxy-connection proxy-authenticate proxy-authorization te "
    b"trailer transfer-encoding upgrade http2-settings content-length content-encoding expect "
    b"accept-encoding x-request-id x-request-timeout-ms x-slo-ttft-ms x-slo-tbt-ms x-slo-class "
    b"x-spillway-dispatch x-spillway-chunks x-spillway-route x-spillway-reason".split()
)


class Request:
    """One complete request.

    own: the headers named in _OWN_HEADERS, lower case. lines: all others as the client wrote them.
    client: the name of its API key; "" where keys are not looked at.
    """

    __slots__ = ("body", "client", "http10", "keep_alive", "lines", "method", "own", "target")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.own: dict[bytes, bytes] = {}
        self.lines: list[bytes] = []
        self.body = b""
        self.client = ""
        self.keep_alive = True
        self.http10 = False


class Reader(Protocol):
    """Whoever is answering the current request."""

    def client_left(self) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Front(Protocol):
    """Takes complete requests, and owns what connections share.

    now_s: the time as of the last sweep, good enough for timeouts of seconds.
    """

    settings: RouterSettings
    connections: set[ClientConnection]
    now_s: float

    def on_request(self, conn: ClientConnection, request: Request) -> None: ...

    def on_bad_request(self, status: int) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client connection.

    reader: who answers the request in progress; None while an answer is immediate.
    deadline_s: when to give up on the client; inf while we are the ones who owe something.
    """

    __slots__ = (
        "_ahead_bytes",
        "_body",
        "_body_bytes",
        "_busy",
        "_closing",
        "_fault",
        "_front",
        "_head_bytes",
        "_head_done",
        "_last",
        "_parser",
        "_paused",
        "_queue",
        "_request",
        "_serving",
        "_unread",
        "deadline_s",
        "reader",
        "transport",
    )

    def __init__(self, front: Front) -> None:
        self._front = front
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request] | None = None  # requests sent ahead
        self._request: Request | None = None  # the one being parsed
        self._fault: RequestError | None = None
        self._body: list[bytes] = []
        self._body_bytes = self._head_bytes = self._ahead_bytes = 0
        self._head_done = self._busy = self._closing = self._paused = False
        self._last = self._serving = self._unread = False
        self.reader: Reader | None = None
        self.deadline_s = inf

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # What a loop hands to a stream protocol; uvloop's class only looks like asyncio's.
        self.transport = cast(asyncio.Transport, transport)
        connections = self._front.connections
        connections.add(self)
        if len(connections) > self._front.settings.connections_max:
            self._front.on_bad_request(503)
            self.transport.abort()
            return
        self.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES)
        self.deadline_s = self._front.now_s + self._front.settings.request_complete_s

    def data_received(self, data: bytes) -> None:
        if self._closing or self._last or self._fault is not None:
            return  # what follows a last request or a fault cannot be read
        self._head_bytes += len(data)  # what is neither head nor trailer takes it back to 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._last = True  # the request is answered in HTTP/1.1, then the connection ends
        except httptools.HttpParserCallbackError:
            raise  # a bug of ours, not of the client's
        except httptools.HttpParserError as error:
            self._fault = self._fault or RequestError(f"this is not valid HTTP/1.1: {error}")
        settings = self._front.settings
        if self._head_bytes > settings.head_bytes_max:
            self._fault = RequestError(
                f"the request head is larger than {settings.head_bytes_max} bytes", status=431
            )
        if self._busy:
            self._read_ahead(len(data))
        else:
            self._serve()

    def eof_received(self) -> None:
        # A client that half-closes is taken to be gone, as every common proxy does.
        if self._busy:
            self._leave()
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._front.connections.discard(self)
        self._leave()
        self._closing = True
        self._queue = None
        del self._parser  # breaks the cycle of parser and connection

    def pause_writing(self) -> None:
        self.deadline_s = self._front.now_s + self._front.settings.client_stall_s
        self._unread = True
        if self.reader is not None:
            self.reader.pause()

    def resume_writing(self) -> None:
        self._unread = False
        if not self._busy:
            self._serve()
        if self._busy:
            self.deadline_s = inf
        if self.reader is not None:
            self.reader.resume()

    # --- httptools callbacks ------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._request = Request()
        self._head_done = False
        self._body_bytes = 0
        if not self._busy:
            self.deadline_s = self._front.now_s + self._front.settings.request_complete_s

    def on_url(self, url: bytes) -> None:
        assert self._request is not None
        self._request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        if self._head_done or request is None:  # a trailer: dropped, it could overrule a header
            return
        key = name.lower()
        if key not in _OWN_HEADERS:
            request.lines.append(name + b": " + value + b"\r\n")
        elif key == b"connection" and key in request.own:  # a list may come in pieces
            request.own[key] += b", " + value
        else:
            request.own[key] = value.strip()

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        parser = self._parser
        self._head_done = True
        self._head_bytes = 0
        request.method = parser.get_method()
        version = parser.get_http_version()
        request.http10 = version == "1.0"
        request.keep_alive = not request.http10 and parser.should_keep_alive()
        own = request.own
        length = own.get(b"content-length")
        if version not in ("1.1", "1.0"):
            self._fault = RequestError("only HTTP/1.1 and 1.0 are spoken here", status=505)
        elif b"host" not in own and not request.http10:
            self._fault = RequestError("the Host header is missing")
        elif length is not None and b"transfer-encoding" in own:
            self._fault = RequestError("Content-Length and Transfer-Encoding exclude each other")
        elif length is not None and int(length) > self._front.settings.body_bytes_max:
            self._fault = self._too_large()
        elif b"expect" in own:
            self._expect(own[b"expect"])
        if b"connection" in own and own[b"connection"].lower() not in (b"keep-alive", b"close"):
            drop_nominated(request)

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        self._body_bytes += len(data)
        if self._body_bytes > self._front.settings.body_bytes_max:
            self._fault = self._fault or self._too_large()
        elif self._fault is None:
            self._body.append(data)

    def on_message_complete(self) -> None:
        request, self._request = self._request, None
        self._head_done = False
        self._head_bytes = 0
        body, self._body = self._body, []
        if self._fault is not None:
            return
        assert request is not None
        request.body = body[0] if len(body) == 1 else b"".join(body)
        if self._queue is None:
            self._queue = deque()
        self._queue.append(request)

    # --- answering ----------------------------------------------------------------------------

    def respond(
        self,
        request: Request,
        status: int,
        body: bytes,
        lines: bytes = JSON_TYPE,
        *,
        close: bool = False,
    ) -> None:
        """Write a whole answer. `lines` are header lines, each with its CRLF."""
        close = close or not request.keep_alive or self.is_last
        end = b"connection: close\r\n\r\n" if close else b"\r\n"
        head = b"%bcontent-length: %d\r\n%b" % (lines, len(body), end)
        content = b"" if request.method == b"HEAD" else body  # else it is the next answer's head
        self.send(status_line(status) + head + content)
        self.answered(close=close)

    def send(self, data: bytes) -> None:
        """Write bytes of an answer, unless the client has just gone (uvloop would raise)."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def refuse(self, request: Request, error: RequestError, lines: bytes = b"") -> None:
        """Answer a bad request with an OpenAI error body."""
        self._front.on_bad_request(error.status)
        body = error_body(error.status, str(error), param=error.param)
        self.respond(request, error.status, body, JSON_TYPE + lines)

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with the current answer, whatever the request says."""
        return self._last and not self._queue

    def answered(self, *, close: bool) -> None:
        """The current answer is complete; go on with the next request, or close."""
        self.reader = None
        self._busy = False
        if close:
            self._closing = True
            self._queue = None
            self.deadline_s = self._front.now_s + self._front.settings.client_stall_s
            self.transport.close()
            return
        settings = self._front.settings
        self.deadline_s = self._front.now_s + (
            settings.client_idle_s if self._request is None else settings.request_complete_s
        )
        if self._queue or self._fault or self._paused:
            # Not from here: a long row of immediate answers would nest as deep as it is long.
            asyncio.get_running_loop().call_soon(self._serve)

    def expire(self) -> None:
        """The deadline passed: the client is too slow, idle for too long, or does not read."""
        if self._busy or self._closing or self.transport.get_write_buffer_size():
            self.transport.abort()
        elif self._request is not None:
            self._fault = RequestError("the request did not arrive in time", status=408)
            self._refuse_and_close()
        else:
            self._closing = True
            self.transport.close()

    # --- inside -------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Take up waiting requests until one needs an engine."""
        if self._serving or self._closing:
            return
        self._serving = True
        while self._queue and not (self._busy or self._closing or self._unread):
            request = self._queue.popleft()
            self._busy = True
            self.deadline_s = inf
            self._ahead_bytes = 0
            self._front.on_request(self, request)
        self._serving = False
        if self._closing or self._busy:
            return
        if self._unread:  # a client that reads no answers is not asked for more
            self._read_ahead(AHEAD_BYTES_MAX + 1)
            return
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()
        if self._fault is not None:
            self._refuse_and_close()

    def _read_ahead(self, received_bytes: int) -> None:
        self._ahead_bytes += received_bytes
        if self._ahead_bytes > AHEAD_BYTES_MAX and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def _refuse_and_close(self) -> None:
        """Answer what could not be read, then wait a little so that the answer is read."""
        fault = self._fault
        assert fault is not None
        self._closing = True
        self._front.on_bad_request(fault.status)
        if self.transport.is_closing():
            return
        body = error_body(fault.status, str(fault))
        head = b"%bconnection: close\r\ncontent-length: %d\r\n\r\n" % (JSON_TYPE, len(body))
        self.transport.writelines((status_line(fault.status), head, body))
        if self.transport.can_write_eof():  # TLS cannot
            self.transport.write_eof()
        self.deadline_s = self._front.now_s + LINGER_S

    def _expect(self, value: bytes) -> None:
        if value.lower() != b"100-continue":
            self._fault = RequestError("only Expect: 100-continue is understood", status=417)
        elif not self._busy and not self._queue:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _too_large(self) -> RequestError:
        limit = self._front.settings.body_bytes_max
        return RequestError(f"the body is larger than {limit} bytes", status=413)

    def _leave(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.client_left()


def status_line(status: int) -> bytes:
    """Return the first line of an answer."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def drop_nominated(request: Request) -> None:
    """Remove the headers that the Connection header declares to be hop-by-hop."""
    named = {name.strip().lower() for name in request.own[b"connection"].split(b",")}
    request.lines = [
        line for line in request.lines if line[: line.index(b":")].lower() not in named
    ]
