"""An engine that does as it is told, byte by byte, and keeps every request it got.

It speaks just enough HTTP/1.1 for a router's tests, on loopback, in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from builders import make_spec
from spillway.core.types import Role

KV_PARAMS = (
    '{"do_remote_prefill":true, "remote_host":"10.0.0.9","remote_block_ids":[[1,2]],"x":1.50,'
    '"remote_port":5600,"remote_engine_id":"e", "remote_request_id":"r","tp_size":1}'
)


@dataclass
class Got:
    """One request that a node received."""

    method: str
    target: str
    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    conn: int
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}

    @property
    def json(self):
        return json.loads(self.body)


Handler = Callable[["FakeNode", Got], Awaitable[None]]


def response(status: int, body: bytes, *lines: str, phrase: str = "OK") -> bytes:
    head = [f"HTTP/1.1 {status} {phrase}", f"content-length: {len(body)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def json_response(status: int, content: object, *lines: str) -> bytes:
    body = json.dumps(content).encode()
    return response(status, body, "content-type: application/json", *lines)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(number: int) -> bytes:
    return b'data: {"choices":[{"text":"t%d "}]}\n\n' % number


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: now\r\nserver: uvicorn\r\nX-Internal-Host: secret\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


async def answer_prefill(node: FakeNode, got: Got) -> None:
    body = (
        '{"id":"x","choices":[{"text":"a"}],"usage":{"prompt_tokens":7,"completion_tokens":1},'
        f'"kv_transfer_params":{KV_PARAMS}}}'
    ).encode()
    got.writer.write(response(200, body, "content-type: application/json"))


async def answer_decode(node: FakeNode, got: Got) -> None:
    if got.json.get("stream"):
        got.writer.write(SSE_HEAD)
        for number in range(3):
            got.writer.write(chunk(event(number)))
            await got.writer.drain()
        got.writer.write(DONE)
    else:
        got.writer.write(
            json_response(
                200,
                {"choices": [{"text": "t0 t1"}], "usage": {"completion_tokens": 2}},
                "server: uvicorn",
            )
        )


class FakeNode:
    """A scriptable engine. `on_post` answers completions; the other pages have defaults."""

    def __init__(self, node_id: str, role: Role, **spec) -> None:
        self.spec = make_spec(node_id, role, **spec)
        self.role = role
        self.on_post: Handler = answer_prefill if role is Role.PREFILL else answer_decode
        self.on_reports: Handler | None = None
        self.health = 200
        self.models = ["m"]
        self.posts: list[Got] = []
        self.gets: list[Got] = []
        self.conns = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> FakeNode:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stop_listening(self) -> None:
        """Begin to shut down in good order: what is connected stays so while it has work."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers - {got.writer for got in self.posts}:
            writer.transport.abort()

    async def stop(self) -> None:
        """Die at once: no socket survives."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    def drop_connections(self) -> None:
        """Close every connection, as an engine does with idle ones."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None or not self._server.is_serving():  # on its way when it stopped
            writer.transport.abort()
            return
        self.conns += 1
        task = asyncio.current_task()
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._talk(reader, writer, self.conns)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _talk(self, reader, writer, conn: int) -> None:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            got = Got(method, target, head, b"", writer, conn)
            got.body = await reader.readexactly(int(got.headers.get("content-length", "0")))
            handler = self._handler(got)
            work = asyncio.ensure_future(handler(self, got))
            watch = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            # Nothing is ever sent ahead, so a read that returns means that the router left.
            is_gone = watch.done()
            (work if is_gone else watch).cancel()
            results = await asyncio.gather(work, watch, return_exceptions=True)
            if is_gone or isinstance(results[0], ConnectionError):
                got.left.set()
                return
            if isinstance(results[0], Exception):
                raise results[0]
            await writer.drain()

    def _handler(self, got: Got) -> Handler:
        if got.method == "POST":
            self.posts.append(got)
            return self.on_post
        self.gets.append(got)
        if got.target == "/health":
            return self._answer_health
        if got.target == "/v1/models":
            return self._answer_models
        if got.target.startswith("/spillway/reports") and self.on_reports is not None:
            return self.on_reports
        return self._answer_404

    async def _answer_health(self, node: FakeNode, got: Got) -> None:
        got.writer.write(response(self.health, b""))

    async def _answer_models(self, node: FakeNode, got: Got) -> None:
        entries = [{"id": name, "object": "model", "root": node.url} for name in self.models]
        got.writer.write(json_response(200, {"object": "list", "data": entries}))

    async def _answer_404(self, node: FakeNode, got: Got) -> None:
        got.writer.write(json_response(404, {"detail": "Not Found"}))
