"""Keep-alive connections to one engine, the most recently used one first.

Engines close a connection that has been idle for 5 s, so ours are dropped before; the last in is
the first out, so that a burst's extra connections age and go.
"""

from __future__ import annotations

import asyncio
import ssl
from math import inf
from typing import Any
from urllib.parse import urlsplit

from spillway.clock import Clock, MonotonicClock
from spillway.core.errors import ConfigError
from spillway.core.types import NodeId
from spillway.router.head_lines import HeadLines
from spillway.router.http_client import AnswerSink, Fault, UpstreamConnection
from spillway.router.settings import RouterSettings
from spillway.router.tls import engine_context

CLOCK = MonotonicClock()
LAST_LOOK_S = 0.05  # at the sockets, after a time that may be over because nobody looked


class NodePool:
    """The connections to one engine.

    authority: `host:port`, as sent in Host; never shown to a client.
    opened, reused, retried: counters for /metrics.
    tls: what an https URL is checked by; None is what the settings say for engines.
    Raises ConfigError for a base URL that is not `http://HOST:PORT`, or https.
    """

    __slots__ = (
        "_host",
        "_idle",
        "_loop",
        "_now_s",
        "_port",
        "_request_end",
        "_settings",
        "_swept_s",
        "_tls",
        "authority",
        "closed",
        "head_lines",
        "node_id",
        "opened",
        "retried",
        "reused",
    )

    def __init__(
        self,
        node_id: NodeId,
        base_url: str,
        settings: RouterSettings,
        tls: ssl.SSLContext | None = None,
        clock: Clock = CLOCK,
    ) -> None:
        url = urlsplit(base_url)
        try:
            port = url.port or (443 if url.scheme == "https" else 80)
        except ValueError:
            port = 0
        extra = url.path.strip("/") or url.query or url.username
        is_tls = url.scheme == "https"
        if not port or not (is_tls or url.scheme == "http") or not url.hostname or extra:
            raise ConfigError(f"node {node_id}: the URL is {base_url!r}; write http://HOST:PORT")
        self.node_id = node_id
        self._host, self._port = url.hostname, port
        self.authority = url.netloc.encode()
        self.head_lines = HeadLines(self.authority)
        self._request_end = b" HTTP/1.1\r\nhost: " + self.authority + b"\r\n"
        self._settings = settings
        self._tls = (tls or engine_context(settings)) if is_tls else None
        self._loop = asyncio.get_running_loop()
        self._now_s = clock.now_s
        self._idle: list[UpstreamConnection] = []
        self._swept_s = clock.now_s()
        self.closed = False
        self.opened = self.reused = self.retried = 0

    @property
    def idle_conns(self) -> int:
        return len(self._idle)

    def post(
        self,
        sink: AnswerSink,
        target: bytes,
        lines: bytes,
        body: bytes,
        *,
        may_resend: bool = True,
    ) -> UpstreamConnection:
        """Send a POST; `lines` are header lines, each with its CRLF, without the length.

        may_resend: whether it may be sent again when a kept connection turns out to be dead.
        """
        head = b"POST %b%b%bcontent-length: %d\r\n\r\n" % (
            target,
            self._request_end,
            lines,
            len(body),
        )
        return self._begin(sink, head, body, may_resend)

    def get(self, sink: AnswerSink, target: bytes, lines: bytes = b"") -> UpstreamConnection:
        """Send a GET; `lines` as in `post`."""
        head = b"GET %b%b%b\r\n" % (target, self._request_end, lines)
        return self._begin(sink, head, b"", True)

    def release(self, conn: UpstreamConnection) -> None:
        """Take back a connection whose exchange ended well."""
        if self.closed or len(self._idle) >= self._settings.upstream_idle_conns_max:
            conn.abort()
            return
        conn.idle_since_s = self._swept_s
        self._idle.append(conn)

    def forget(self, conn: UpstreamConnection) -> None:
        """An idle connection went away by itself."""
        if conn in self._idle:
            self._idle.remove(conn)

    def reopen(self, conn: UpstreamConnection) -> None:
        """Send the request of a reused connection again, on a fresh one."""
        self.retried += 1
        self._open(conn)

    def sweep(self, now_s: float) -> None:
        """Close the connections that would be past their time before the next sweep.

        A connection counts as idle from the sweep before its return, so that taking and returning
        one needs no look at the clock.
        """
        self._swept_s = now_s
        settings = self._settings
        since_s = now_s + settings.sweep_s - settings.upstream_idle_s
        while self._idle and self._idle[0].idle_since_s <= since_s:  # the oldest are in front
            self._idle.pop(0).abort()

    def close(self) -> None:
        """Close the idle connections and keep no more; running exchanges are their owners'."""
        self.closed = True
        self.sweep(inf)

    def _begin(
        self, sink: AnswerSink, head: bytes, body: bytes, may_resend: bool
    ) -> UpstreamConnection:
        if self._idle and (now_s := self._now_s()) - self._swept_s > self._settings.sweep_s:
            self.sweep(now_s)  # a sweep is late, and engines have closed what is too old meanwhile
        while self._idle:
            conn = self._idle.pop()
            if conn.is_open:
                self.reused += 1
                conn.begin(sink, head, body, may_resend=may_resend)
                return conn
        conn = UpstreamConnection(self)
        conn.begin(sink, head, body, may_resend=may_resend)
        self._open(conn)
        return conn

    def _open(self, conn: UpstreamConnection) -> None:
        self.opened += 1
        conn.opening = self._loop.create_task(self._connect(conn))

    async def _connect(self, conn: UpstreamConnection) -> None:
        standing = self._loop.create_task(
            self._loop.create_connection(lambda: conn, self._host, self._port, ssl=self._tls)
        )
        try:
            await self._wait(standing, conn)
            fault = None if conn.is_open else _fault_of(standing)
        finally:
            # Once the connection stands its owner may have begun, and even ended, an exchange.
            if not conn.is_open:
                standing.cancel()
        conn.opening = None
        if fault is not None:
            conn.fail(fault)

    async def _wait(self, standing: asyncio.Task[Any], conn: UpstreamConnection) -> None:
        """Return once the connection stands, or has failed, or its time is over.

        A loop that was kept from running sees timers before sockets: what the node did meanwhile
        must not be taken for silence, so sockets are looked at once more.
        """
        await asyncio.wait((standing,), timeout=self._settings.connect_s)
        if not standing.done() and not conn.is_open:
            await asyncio.wait((standing,), timeout=LAST_LOOK_S)


def _fault_of(standing: asyncio.Task[Any]) -> Fault | None:
    """Return why there is no connection; None for one that stood, and is gone already."""
    if not standing.done():
        return Fault.CONNECT_TIMEOUT
    error = standing.exception()
    if error is None:
        return None
    return Fault.REFUSED if isinstance(error, ConnectionRefusedError) else Fault.UNREACHABLE
