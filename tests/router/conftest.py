"""Fake nodes, a router in front of them, and a client that hides nothing of what it got.

Everything runs on loopback in one event loop (uvloop, as in production).
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from shutil import which

import pytest
import uvloop

from fakenode import FakeNode
from spillway.core.decide import Decision, Reason, Route, TtftEstimate
from spillway.core.dispatcher import DispatchLimits
from spillway.core.policies import build_policy
from spillway.core.types import Role, Slo
from spillway.router.app import serve
from spillway.router.settings import Classes, RouterSettings


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


class Deflect:
    """A policy that deflects everything to the first usable decode node."""

    name = "always-deflect"

    def __init__(self, plan=None, execute_plan: bool = False) -> None:
        self.plan = plan
        self.execute_plan = execute_plan

    def decide(self, request, cluster):
        node_id = self.pick_decode(request, cluster)
        if node_id is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        reason, estimate = Reason.FASTER_ON_DECODE, TtftEstimate(queue_s=0.25)
        return Decision(
            Route.DEFLECTED, reason, None, node_id, estimate, self.plan, self.execute_plan
        )

    def pick_decode(self, request, cluster):
        return next((node.node_id for node in cluster.decode if node.usable), None)


@pytest.fixture
def deflect():
    return Deflect


@dataclass
class Answer:
    status: int
    head: bytes
    body: bytes  # without chunk framing
    raw: bytes  # the body with its framing
    complete: bool

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines) if k}

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


class Client:
    """One connection that sends exactly what it is given and reads one answer at a time."""

    def __init__(self, reader, writer) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, body: object, path="/v1/completions", headers=(), version="1.1") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/{version}", "host: router", f"content-length: {len(data)}"]
        self.send("\r\n".join([*lines, *headers]).encode() + b"\r\n\r\n" + data)

    def get(self, path: str, *headers: str) -> None:
        self.send("\r\n".join([f"GET {path} HTTP/1.1", "host: router", *headers, "", ""]).encode())

    async def answer(self) -> Answer:
        head = await self.reader.readuntil(b"\r\n\r\n")
        got = Answer(int(head.split(b" ", 2)[1]), head, b"", b"", True)
        try:
            if got.headers.get("transfer-encoding") == "chunked":
                await self._read_chunks(got)
            elif "content-length" in got.headers:
                got.body = got.raw = await self.reader.readexactly(
                    int(got.headers["content-length"])
                )
            elif got.status >= 200:
                got.body = got.raw = await self.reader.read()
        except asyncio.IncompleteReadError as error:
            got.complete = False
            got.raw += error.partial
        except ConnectionResetError:
            got.complete = False
        return got

    async def _read_chunks(self, got: Answer) -> None:
        raw, content, size = [], [], -1
        try:
            while size:
                raw.append(await self.reader.readuntil(b"\r\n"))
                size = int(raw[-1].partition(b";")[0], 16)
                raw.append(await self.reader.readexactly(size + 2))
                content.append(raw[-1][:-2])
        finally:
            got.raw, got.body = b"".join(raw), b"".join(content)

    async def at_end(self) -> bool:
        try:
            return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True

    def abort(self) -> None:
        self.writer.transport.abort()


FAST = {
    "health_interval_s": 0.02,
    "health_timeout_s": 0.5,
    "sweep_s": 0.02,
    "drain_s": 0.05,
    "connect_s": 1.0,
    "report_retry_first_s": 0.01,
    "report_retry_max_s": 0.02,
}


class Bench:
    """What a test asks for: nodes, a router, connections to it."""

    def __init__(self) -> None:
        self.nodes: list[FakeNode] = []
        self.servers: list = []
        self.clients: list[Client] = []

    async def node(self, node_id: str, role: Role | None = None, **spec) -> FakeNode:
        role = role or (Role.PREFILL if node_id.startswith("p") else Role.DECODE)
        node = await FakeNode(node_id, role, **spec).start()
        self.nodes.append(node)
        return node

    async def router(self, *nodes: FakeNode, policy="round-robin", retries_max=2, **settings):
        classes = Classes({"default": Slo(1.0, 0.06), "batch": Slo(30.0, 0.5)})
        server = await serve(
            [(node.spec, node.url) for node in nodes],
            build_policy(policy) if isinstance(policy, str) else policy,
            classes=classes,
            limits=DispatchLimits(retries_max=retries_max),
            settings=RouterSettings(**{"port": 0, **FAST, **settings}),
        )
        self.servers.append(server)
        return server

    async def pair(self, policy="round-robin", **settings):
        """Return a prefill node, a decode node and a router in front of them."""
        prefill, decode = await self.node("p0"), await self.node("d0")
        return prefill, decode, await self.router(prefill, decode, policy=policy, **settings)

    async def client(self, server) -> Client:
        port = server if isinstance(server, int) else server.port
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        self.clients.append(client)
        return client

    async def ask(self, server, body, *, path="/v1/completions", headers=()) -> Answer:
        client = await self.client(server)
        client.post(body, path, headers)
        return await client.answer()

    async def page(self, server, path: str) -> Answer:
        client = await self.client(server)
        client.get(path)
        return await client.answer()

    async def close(self) -> None:
        for client in self.clients:
            client.abort()
        for server in self.servers:
            await server.close()
        for node in self.nodes:
            await node.stop()


@pytest.fixture
async def bench():
    bench = Bench()
    yield bench
    await bench.close()


@pytest.fixture
def until():
    """Wait until a condition holds; a test that waits in vain fails."""

    async def wait(condition: Callable[[], object], limit_s: float = 2.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.001)

    return wait


BODY = {"model": "m", "prompt": "hello there", "max_tokens": 5, "stream": True}


@pytest.fixture
def body():
    return dict(BODY)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    """A certificate for localhost and 127.0.0.1, signed by itself, and its key."""
    if which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} "
        f"-out {cert}",
        shell=True,
        check=True,
        capture_output=True,
    )
    return cert, key
