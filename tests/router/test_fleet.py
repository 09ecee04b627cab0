"""Nodes join, drain and leave while requests run, by the admin port and by the file."""

from __future__ import annotations

import asyncio
import json
import os
from types import SimpleNamespace

import pytest

from fakenode import answer_decode
from spillway.core.errors import ConfigError
from spillway.router.app import serve_config
from spillway.wire.config import load_config

TOKEN = "s3cret"
ADMIN = {"admin_port": 0, "admin_token": TOKEN}
FAST = """
router:
  port: 0
  admin_port: 0
  admin_token: s3cret
  health_interval_s: 0.02
  config_watch_s: 0.02
  drain_s: 0.05
policy: {name: round-robin}
"""


class Ports:
    """A router that follows a file, and a way to ask its admin port."""

    def __init__(self, bench, path) -> None:
        self.bench = bench
        self.path = path

    def write(self, *nodes, extra: str = "") -> None:
        text = FAST + extra + "nodes:\n"
        for role in ("prefill", "decode"):
            text += f"  {role}:\n"
            for node in nodes:
                if node.role.value == role:
                    text += f"    - {{url: '{node.url}', name: {node.spec.node_id}}}\n"
        beside = self.path.with_suffix(".new")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self.path)

    async def start(self, *nodes) -> None:
        self.write(*nodes)
        self.server = await serve_config(load_config(self.path), self.path)
        self.bench.servers.append(self.server)

    async def admin(self, method: str, path: str, body: object = None, token: str | None = TOKEN):
        client = await self.bench.client(self.server.admin_port.port)
        data = b"" if body is None else json.dumps(body).encode()
        auth = f"authorization: Bearer {token}\r\n" if token else ""
        head = f"{method} {path} HTTP/1.1\r\nhost: a\r\n{auth}content-length: {len(data)}\r\n\r\n"
        client.send(head.encode() + data)
        return await client.answer()

    async def states(self) -> dict[str, str]:
        said = (await self.admin("GET", "/admin/nodes")).json
        return {node["name"]: node["state"] for node in said["nodes"]}


@pytest.fixture
def ports(bench, tmp_path) -> Ports:
    return Ports(bench, tmp_path / "cluster.yaml")


@pytest.fixture
async def cluster(bench, ports, until) -> SimpleNamespace:
    prefill, one, two = [await bench.node(name) for name in ("p0", "d0", "d1")]
    await ports.start(prefill, one, two)
    await until(lambda: all(node.is_up for node in ports.server.health.nodes.values()))
    return SimpleNamespace(prefill=prefill, one=one, two=two, server=ports.server)


async def test_a_drained_node_finishes_what_it_has_and_gets_no_more(
    bench, body, ports, cluster, until
) -> None:
    go_on = asyncio.Event()

    async def held(node, got) -> None:
        await go_on.wait()
        await answer_decode(node, got)

    cluster.one.on_post = cluster.two.on_post = held
    client = await bench.client(cluster.server)
    client.post(body)
    await until(lambda: cluster.one.posts)
    assert (await ports.admin("POST", "/admin/nodes/d0/drain")).status == 200
    assert (await ports.states())["d0"] == "draining"
    cluster.two.on_post = answer_decode
    for _ in range(3):
        assert (await bench.ask(cluster.server, body)).status == 200
    assert (len(cluster.one.posts), len(cluster.two.posts)) == (1, 3)
    go_on.set()
    assert (await client.answer()).complete
    await asyncio.sleep(0.05)  # answers to /health do not bring it back
    assert (await ports.states())["d0"] == "drained"
    await ports.admin("POST", "/admin/nodes/d0/resume")
    await until(lambda: cluster.server.health.nodes["d0"].is_up)


async def test_a_node_that_is_removed_goes_when_its_work_is_done(
    bench, body, ports, cluster, until
) -> None:
    go_on = asyncio.Event()

    async def held(node, got) -> None:
        await go_on.wait()
        await answer_decode(node, got)

    cluster.one.on_post = held
    client = await bench.client(cluster.server)
    client.post(body)
    await until(lambda: cluster.one.posts)
    assert (await ports.admin("DELETE", "/admin/nodes/d0")).status == 200
    assert (await ports.states())["d0"] == "leaving"
    go_on.set()
    assert (await client.answer()).complete
    cluster.server.fleet.sweep()
    assert "d0" not in await ports.states()
    assert "d0" not in cluster.server.shell.pools
    assert (await bench.ask(cluster.server, body)).status == 200


async def test_a_node_that_is_added_gets_work_once_it_answers(
    bench, body, ports, cluster, until
) -> None:
    new = await bench.node("d2")
    new.health = 500
    added = {"role": "decode", "node": {"name": "d2", "url": new.url}}
    assert (await ports.admin("POST", "/admin/nodes", added)).status == 201
    for _ in range(4):
        await bench.ask(cluster.server, body)
    assert new.posts == []
    new.health = 200
    await until(lambda: cluster.server.health.nodes["d2"].is_up)
    for _ in range(3):
        assert (await bench.ask(cluster.server, body)).status == 200
    assert len(new.posts) == 1


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "said"),
    [
        ("POST", "/admin/nodes", {"role": "decode", "node": {"name": "d0"}}, 409, "url"),
        ("POST", "/admin/nodes", {"role": "x"}, 400, "the body is not like"),
        ("POST", "/admin/nodes", {"role": "decode", "node": {"url": "http://a:1"}}, 409, "name"),
        ("DELETE", "/admin/nodes/nobody", None, 409, "there are: d0, d1, p0"),
        ("POST", "/admin/nodes/d0/explode", None, 404, "no such path"),
        ("PUT", "/metrics", None, 405, "GET"),
    ],
)
async def test_what_cannot_be_done_is_said(
    ports, cluster, method: str, path: str, content, status: int, said: str
) -> None:
    answer = await ports.admin(method, path, content)
    assert (answer.status, said in answer.error["message"]) == (status, True), answer.body


async def test_the_last_decode_node_stays(ports, cluster, until) -> None:
    await ports.admin("DELETE", "/admin/nodes/d0")
    answer = await ports.admin("DELETE", "/admin/nodes/d1")
    assert (answer.status, "last decode node" in answer.error["message"]) == (409, True)


async def test_operators_pages_need_the_token_and_are_not_on_the_clients_port(
    bench, ports, cluster
) -> None:
    for path in ("/metrics", "/debug/decisions", "/dashboard/data", "/admin/nodes"):
        assert (await ports.admin("GET", path)).status == 200
        for wrong in (None, "S3cret", ""):
            assert (await ports.admin("GET", path, token=wrong)).status == 401
        assert (await bench.page(cluster.server, path)).status == 404
    assert (await ports.admin("DELETE", "/admin/nodes/d0", token="no")).status == 401
    assert (await ports.admin("GET", "/dashboard", token=None)).status == 200
    assert (await bench.page(cluster.server, "/health")).status == 200


async def test_without_a_token_nobody_changes_anything(bench, ports) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    server = await bench.router(prefill, decode, admin_port=0)
    ports.server = server
    assert (await ports.admin("GET", "/metrics", token=None)).status == 200
    assert (await ports.admin("DELETE", "/admin/nodes/p0", token=None)).status == 403


async def test_the_file_is_followed_when_it_changes(bench, body, ports, cluster, until) -> None:
    new = await bench.node("d2")
    ports.write(cluster.prefill, cluster.one, new)
    nodes = cluster.server.health.nodes
    await until(lambda: "d2" in nodes and nodes["d2"].is_up and "d1" not in nodes)
    for _ in range(4):
        assert (await bench.ask(cluster.server, body)).status == 200
    assert (len(cluster.one.posts), len(cluster.two.posts), len(new.posts)) == (2, 0, 2)


async def test_a_node_that_moved_is_taken_up_where_it_is(
    bench, body, ports, cluster, until
) -> None:
    moved = await bench.node("d1")
    ports.write(cluster.prefill, cluster.one, moved)
    await until(lambda: cluster.server.fleet.nodes["d1"].url == moved.url)
    await until(lambda: cluster.server.health.nodes["d1"].is_up)
    for _ in range(4):
        assert (await bench.ask(cluster.server, body)).status == 200
    assert (len(moved.posts), len(cluster.two.posts)) == (2, 0)


async def test_classes_change_in_place_and_the_rest_is_named(bench, body, ports, cluster) -> None:
    ports.write(cluster.prefill, cluster.one, cluster.two, extra="classes: {fast: {ttft_s: 0.1}}\n")
    assert (await ports.admin("POST", "/admin/reload")).json == {
        "joined": [],
        "left": [],
        "needs_restart": [],
    }
    answer = await bench.ask(cluster.server, body, headers=["x-slo-class: fast"])
    assert answer.status == 200
    ports.write(cluster.prefill, cluster.one, cluster.two, extra="limits: {retries_max: 7}\n")
    assert (await ports.admin("POST", "/admin/reload")).json["needs_restart"] == ["limits"]


async def test_a_file_with_a_fault_changes_nothing(bench, body, ports, cluster, until) -> None:
    ports.path.write_text("nodes: {prefill: [], decode: []}", encoding="utf-8")
    await until(lambda: cluster.server.shell.metrics.reloads["refused"] == 1)
    answer = await ports.admin("POST", "/admin/reload")
    assert (answer.status, "cluster.yaml" in answer.error["message"]) == (409, True)
    assert set(await ports.states()) == {"p0", "d0", "d1"}
    assert (await bench.ask(cluster.server, body)).status == 200


async def test_streams_live_through_changes_of_the_fleet(
    bench, body, ports, cluster, until
) -> None:
    """Requests run all the time while nodes come and go: none of them fails."""
    spare = await bench.node("d2")
    asked, stop = [], asyncio.Event()

    async def ask_on() -> None:
        while not stop.is_set():
            asked.append(await bench.ask(cluster.server, body))

    askers = [asyncio.ensure_future(ask_on()) for _ in range(4)]
    for _ in range(5):
        ports.write(cluster.prefill, cluster.one, spare)
        await until(lambda: set(cluster.server.health.nodes) == {"p0", "d0", "d2"})
        ports.write(cluster.prefill, cluster.one, cluster.two)
        await until(lambda: set(cluster.server.health.nodes) == {"p0", "d0", "d1"})
    stop.set()
    await asyncio.gather(*askers)
    assert len(asked) > 20
    assert {(answer.status, answer.complete) for answer in asked} == {(200, True)}
    assert not cluster.server.broken.done()


async def test_a_taken_admin_port_is_a_configuration_error(bench) -> None:
    prefill, decode, server = await bench.pair()
    with pytest.raises(ConfigError, match=r"another router\.admin_port"):
        await bench.router(prefill, decode, admin_port=server.port)
