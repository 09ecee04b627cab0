"""Nodes by name: each address is one, what cannot be resolved changes nothing."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import FakeNode
from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.router import discovery
from spillway.router.app import serve_config
from spillway.wire.codec import convert, in_file
from spillway.wire.config import ClusterConfig


def config_of(prefill: FakeNode, port: int, **names: str) -> ClusterConfig:
    raw = {
        "nodes": {"prefill": [{"url": prefill.url}]},
        "discovery": {"decode": f"decode.test:{port}", "interval_s": 0.02, **names},
        "router": {"port": 0, "health_interval_s": 0.02, "drain_s": 0.05},
        "policy": {"name": "round-robin"},
    }
    return convert(raw, ClusterConfig, in_file("test"))


class Names:
    """A name server that says what it is told, or fails."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: tuple[str, ...] = addresses
        self.asked = 0

    async def __call__(self, host: str, port: int) -> tuple[str, ...]:
        assert host == "decode.test"
        self.asked += 1
        if not self.addresses:
            raise OSError("no such name")
        return self.addresses


class OtherAddress(FakeNode):
    """A node on another address of the loopback, but on the same port."""

    async def start(self) -> FakeNode:
        self._server = await asyncio.start_server(self._accept, "127.0.0.2", self.port)
        return self


async def test_nodes_come_and_go_with_the_addresses_of_a_name(
    bench, body, until, monkeypatch
) -> None:
    prefill, one = await bench.node("p0"), await bench.node("d0")
    two = OtherAddress("d1", Role.DECODE)
    two.port = one.port
    bench.nodes.append(await two.start())
    names = Names("127.0.0.1")
    monkeypatch.setattr(discovery.Discovery.__init__, "__defaults__", (names,))
    server = await serve_config(config_of(prefill, one.port))
    bench.servers.append(server)
    nodes = server.health.nodes
    await until(lambda: all(node.is_up for node in nodes.values()))
    assert set(nodes) == {"p0", "decode-127-0-0-1"}

    names.addresses = ("127.0.0.1", "127.0.0.2")
    await until(lambda: "decode-127-0-0-2" in nodes and nodes["decode-127-0-0-2"].is_up)
    for _ in range(4):
        assert (await bench.ask(server, body)).status == 200
    assert (len(one.posts), len(two.posts)) == (2, 2)

    names.addresses, asked = (), names.asked
    await until(lambda: names.asked > asked + 2)
    assert len(nodes) == 3, "a name server that fails takes no node away"

    names.addresses = ("127.0.0.2",)
    await until(lambda: set(nodes) == {"p0", "decode-127-0-0-2"})
    assert (await bench.ask(server, body)).status == 200


async def test_a_name_that_is_never_resolved_leaves_no_decode_node(bench, monkeypatch) -> None:
    prefill = await bench.node("p0")
    monkeypatch.setattr(discovery.Discovery.__init__, "__defaults__", (Names(),))
    with pytest.raises(ConfigError, match="no decode node"):
        await serve_config(config_of(prefill, 8000))


@pytest.mark.parametrize("name", ["decode.test", "decode.test:x", ":80", "decode.test:99999"])
async def test_a_name_without_a_port_is_refused(bench, name: str) -> None:
    prefill = await bench.node("p0")
    with pytest.raises(ConfigError, match=r"discovery\.decode"):
        await serve_config(config_of(prefill, 1, decode=name))


async def test_a_real_name_is_resolved() -> None:
    assert "127.0.0.1" in await discovery.resolve("localhost", 80)
