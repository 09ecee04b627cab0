"""Whole answers: what collects a response of an engine that is read before it is acted upon.

The prefill leg and the router's own questions (health, models) subclass `Fetch`; a stream to a
client never passes through here.
"""

from __future__ import annotations

import httptools

from spillway.router.http_client import Fault, Framing, ResponseHead, UpstreamConnection


class Fetch:
    """Collects one answer and calls `done` or `failed`, once. It is an `AnswerSink`.

    leg: the connection that carries it, set by whoever began it.
    """

    __slots__ = ("_bytes", "_bytes_max", "_head", "_parts", "leg")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._parts: list[bytes] = []
        self._head: ResponseHead | None = None
        self.leg: UpstreamConnection | None = None

    def done(self, head: ResponseHead, content: bytes) -> None:
        """Take the answer: its head, and its content without chunk framing."""
        raise NotImplementedError

    def failed(self, fault: Fault) -> None:
        """Take the news that there is no answer."""
        raise NotImplementedError

    def on_head(self, head: ResponseHead) -> None:
        self._head = head

    def on_body(self, data: bytes) -> None:
        self._bytes += len(data)
        if self._bytes <= self._bytes_max:
            self._parts.append(data)
        elif self.leg is not None:
            self.leg.fail(Fault.BAD_RESPONSE)

    def on_end(self) -> None:
        assert self._head is not None
        content = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        if self._head.framing is Framing.CHUNKED:
            content = Unchunker().feed(content)
        self.done(self._head, content)

    def on_fault(self, fault: Fault) -> None:
        self.failed(fault)


class Unchunker:
    """Takes the chunk framing off a body, for readers that need the bytes alone."""

    __slots__ = ("_parser", "_parts")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def feed(self, data: bytes) -> bytes:
        """Return the content of the next raw bytes, which must be validly framed."""
        self._parser.feed_data(data)
        content = b"".join(self._parts)
        self._parts.clear()
        return content
