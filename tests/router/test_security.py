"""Keys, TLS, and clients that are slow or sly."""

from __future__ import annotations

import asyncio
import ssl
from hashlib import sha256
from pathlib import Path

import pytest

from fakenode import FakeNode
from spillway.core.errors import ConfigError
from spillway.core.types import Role

KEY, OTHER = "sk-alpha-0123456789", "sk-beta-0123456789"


def keys_file(folder: Path, **keys: str) -> str:
    lines = [f"{name}:{sha256(key.encode()).hexdigest()}" for name, key in keys.items()]
    path = folder / "keys"
    path.write_text("# who may ask\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


# --- keys ------------------------------------------------------------------------------------


async def test_only_a_known_key_is_let_in_and_it_goes_no_further(bench, body, tmp_path) -> None:
    path = keys_file(tmp_path, alpha=KEY)
    prefill, decode, server = await bench.pair(api_keys_file=path, engine_api_key="inner")
    good = await bench.ask(server, body, headers=[f"Authorization: Bearer {KEY}"])
    assert good.status == 200
    for node in (prefill, decode):
        [got] = node.posts
        assert got.headers["authorization"] == "Bearer inner"
        assert KEY.encode() not in got.head + got.body
    for headers in ([], [f"authorization: Bearer {OTHER}"], [f"authorization: Basic {KEY}"]):
        answer = await bench.ask(server, body, headers=headers)
        assert (answer.status, answer.headers["www-authenticate"][:6]) == (401, "Bearer")
    assert len(prefill.posts) == 1


async def test_two_authorizations_are_none(bench, body, tmp_path) -> None:
    """Which of them an engine would heed is not known."""
    _, _, server = await bench.pair(api_keys_file=keys_file(tmp_path, alpha=KEY))
    both = [f"authorization: Bearer {KEY}", "authorization: Bearer other"]
    assert (await bench.ask(server, body, headers=both)).status == 401


async def test_health_needs_no_key_and_the_rest_does(bench, tmp_path, until) -> None:
    _, _, server = await bench.pair(api_keys_file=keys_file(tmp_path, alpha=KEY))
    await until(lambda: server.health.nodes["d0"].is_up)
    assert (await bench.page(server, "/health")).status in (200, 503)
    for path in ("/metrics", "/debug/decisions", "/v1/models", "/nothing"):
        assert (await bench.page(server, path)).status == 401


async def test_without_keys_what_the_client_sends_is_passed_on(bench, body) -> None:
    prefill, _, server = await bench.pair(engine_api_key="inner")
    await bench.ask(server, body, headers=["Authorization: Bearer mine"])
    assert prefill.posts[0].headers["authorization"] == "Bearer mine"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no key"),
        ("# only words\n", "holds no key"),
        ("alpha:sk-in-plain\n", "keys:1: write NAME:HASH"),
    ],
)
async def test_a_file_of_keys_that_is_none_is_refused(bench, tmp_path, content, said) -> None:
    path = tmp_path / "keys"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as refused:
        await bench.pair(api_keys_file=str(path))
    assert "sk-in-plain" not in str(refused.value)


# --- TLS -------------------------------------------------------------------------------------


class TlsNode(FakeNode):
    """A fake node that speaks TLS."""

    def __init__(self, node_id: str, role: Role, cert: str, key: str) -> None:
        super().__init__(node_id, role)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(cert, key)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    async def start(self) -> FakeNode:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self.context
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self


async def test_a_request_goes_through_tls_on_both_sides(bench, body, certificate) -> None:
    cert, key = certificate
    nodes = [
        TlsNode(name, role, cert, key) for name, role in (("p0", Role.PREFILL), ("d0", Role.DECODE))
    ]
    for node in nodes:
        bench.nodes.append(await node.start())
    server = await bench.router(*nodes, tls_cert_file=cert, tls_key_file=key, engine_ca_file=cert)
    trust = ssl.create_default_context(cafile=cert)
    streams = await asyncio.open_connection("localhost", server.port, ssl=trust)
    client = type(await bench.client(server))(*streams)
    for _ in range(2):
        client.post(body)
        answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
    client.send(b"nonsense\r\n\r\n")
    assert (await client.answer()).status == 400
    client.abort()
    plain = await bench.client(server)
    plain.post(body)
    assert await plain.at_end(), "plain HTTP is not spoken there"


async def test_a_node_with_another_certificate_gets_nothing(bench, body, certificate) -> None:
    cert, key = certificate
    node = TlsNode("d0", Role.DECODE, cert, key)
    bench.nodes.append(await node.start())
    prefill = await bench.node("p0")
    server = await bench.router(prefill, node, policy="round-robin")  # trusts the system alone
    assert (await bench.ask(server, body)).status == 503
    assert node.posts == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_cert_file": "x.pem"}, "belong together"),
        ({"tls_cert_file": "x.pem", "tls_key_file": "y.pem"}, "x.pem"),
    ],
)
async def test_a_certificate_that_cannot_be_read_is_named(bench, settings, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        await bench.pair(**settings)


# --- slow and sly clients --------------------------------------------------------------------


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /v1/completions HTT", b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx: "],
)
async def test_a_client_that_drips_its_head_is_dropped(bench, until, start: bytes) -> None:
    _, _, server = await bench.pair(request_complete_s=0.1)
    client = await bench.client(server)
    client.send(start)
    dripping = asyncio.ensure_future(drip(client))
    assert await asyncio.wait_for(client.reader.read(), 3.0) is not None
    dripping.cancel()
    await until(lambda: not server.connections, 6.0)  # after an answer it lingers a little


async def test_a_client_that_drips_its_body_is_dropped(bench, until) -> None:
    prefill, _, server = await bench.pair(request_complete_s=0.1)
    client = await bench.client(server)
    client.send(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n")
    dripping = asyncio.ensure_future(drip(client))
    assert b" 408 " in await asyncio.wait_for(client.reader.read(), 3.0)
    dripping.cancel()
    assert prefill.posts == []


async def drip(client) -> None:
    while not client.writer.transport.is_closing():
        client.send(b"a")
        await asyncio.sleep(0.01)


async def test_connections_beyond_the_limit_are_closed_and_the_others_serve(bench, body) -> None:
    _, _, server = await bench.pair(connections_max=3)
    held = [await bench.client(server) for _ in range(3)]
    await asyncio.sleep(0.01)
    extra = await bench.client(server)
    assert await extra.at_end()
    held[0].post(body)
    assert (await held[0].answer()).status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked, identity\r\n",
        b"content-length: +5\r\n",
        b"content-length : 5\r\n",
        b"transfer-encoding: xchunked\r\n",
    ],
)
async def test_framing_that_two_readers_could_read_two_ways_is_refused(bench, head: bytes) -> None:
    prefill, decode, server = await bench.pair()
    client = await bench.client(server)
    client.send(
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
        + head
        + b"\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n"
    )
    answer = await client.answer()
    assert 400 <= answer.status < 500
    assert await client.at_end()
    assert prefill.posts == decode.posts == []


@pytest.mark.parametrize("value", [b"a\nx-evil: 1", b"a\rx-evil: 1", b"a\x00b"])
async def test_a_header_cannot_bring_another_along(bench, body, value: bytes) -> None:
    import json

    prefill, _, server = await bench.pair()
    client = await bench.client(server)
    data = json.dumps(body).encode()
    client.send(
        b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-request-id: "
        + value
        + b"\r\ncontent-length: %d\r\n\r\n" % len(data)
        + data
    )
    await client.answer()
    assert all("x-evil" not in got.headers for got in prefill.posts)
