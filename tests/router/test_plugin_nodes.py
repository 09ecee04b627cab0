"""Nodes whose plug-in reports from a port of its own: who is asked, and what their requests carry.

Also how long the KV of a prefill leg is used.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from builders import make_report
from fakenode import KV_PARAMS, chunk, json_response
from spillway.core.policies import build_policy
from spillway.core.types import Role, Slo
from spillway.router.app import serve
from spillway.router.settings import Classes, RouterSettings
from spillway.wire.config import Node
from spillway.wire.report import encode

DEFLECT_ALL = ("threshold", {"prompt_tokens_max": 100_000})
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture
async def cluster(bench):
    """Start p0 and d0, each with a plug-in, and a router; return them and a switch."""

    class Cluster:
        speaking = True

        async def start(self, policy, **settings):
            self.prefill, self.decode = await bench.node("p0"), await bench.node("d0")
            ports = []
            for node, role in ((self.prefill, Role.PREFILL), (self.decode, Role.DECODE)):
                port = await bench.node(f"{node.spec.node_id}-plugin", role)
                port.on_reports = self.speak(role)
                ports.append(Node(node.spec, node.url, port.url))
            fast = {"health_interval_s": 0.02, "sweep_s": 0.02, "drain_s": 0.05}
            fast |= {"report_retry_first_s": 0.01, "report_retry_max_s": 0.02}
            self.server = await serve(
                ports,
                build_policy(policy[0], policy[1]),
                classes=Classes({"default": Slo(1.0, 0.06)}),
                settings=RouterSettings(**{"port": 0, **fast, **settings}),
            )
            bench.servers.append(self.server)
            return self.server

        def speak(self, role):
            async def handler(node, got) -> None:
                if self.speaking:
                    got.writer.write(HEAD + chunk(encode(make_report(role=role))))
                    while self.speaking:
                        await asyncio.sleep(0.005)
                got.writer.close()

            return handler

        def xargs(self, got):
            return got.json.get("vllm_xargs")

    return Cluster()


async def test_each_leg_to_a_reporting_plug_in_carries_its_order(
    cluster, bench, body, until
) -> None:
    server = await cluster.start(("least-loaded", {}))
    await until(lambda: server.shell.takes_orders == {"p0", "d0"})
    assert (await bench.ask(server, body, headers=("x-slo-tbt-ms: 45",))).status == 200
    router_id = server.shell.router_id
    first, second = cluster.prefill.posts[0], cluster.decode.posts[0]
    assert cluster.xargs(first) == {"spillway": f"{router_id}:1:45"}
    assert cluster.xargs(second) == {"spillway": f"{router_id}:2:45"}
    assert second.json["kv_transfer_params"] == json.loads(KV_PARAMS)
    assert not [got for got in cluster.decode.gets if "reports" in got.target]


async def test_a_deflected_body_carries_it_only_while_reports_come(
    cluster, bench, body, until
) -> None:
    server = await cluster.start(DEFLECT_ALL)
    await until(lambda: server.shell.takes_orders == {"p0", "d0"})
    await bench.ask(server, body)
    cluster.speaking = False
    await until(lambda: not server.shell.takes_orders)
    await bench.ask(server, body)
    cluster.speaking = True
    await until(lambda: len(server.shell.takes_orders) == 2)
    await bench.ask(server, body)
    with_order, plain, again = cluster.decode.posts
    assert cluster.xargs(with_order) == {"spillway": f"{server.shell.router_id}:1:60"}
    assert plain.body == json.dumps(body).encode()
    assert cluster.xargs(again) == {"spillway": f"{server.shell.router_id}:3:60"}


async def test_a_plug_in_that_is_gone_does_not_take_its_node_along(
    cluster, bench, body, until
) -> None:
    server = await cluster.start(DEFLECT_ALL)
    await until(lambda: len(server.shell.takes_orders) == 2)
    cluster.speaking = False
    for node in bench.nodes:
        if "plugin" in node.spec.node_id:
            await node.stop()
    await until(lambda: not server.shell.takes_orders)
    assert (await bench.ask(server, body)).status == 200
    assert not any(node.is_lost for node in server.health.nodes.values())


@pytest.mark.parametrize(
    "broken",
    [
        {"remote_block_ids": None},
        {"remote_host": None},
        {"remote_num_tokens": 6},
        {"do_remote_prefill": False},
    ],
)
async def test_a_handover_that_could_kill_an_engine_is_never_sent_on(bench, body, broken) -> None:
    async def answer(node, got) -> None:
        params = {**json.loads(KV_PARAMS), **broken}
        usage = {"prompt_tokens": 7}
        got.writer.write(json_response(200, {"kv_transfer_params": params, "usage": usage}))

    prefill, decode, server = await bench.pair("least-loaded")
    prefill.on_post = answer
    status = (await bench.ask(server, body)).status
    assert status in (200, 503)  # deflected instead, or given up
    assert all("kv_transfer_params" not in got.json for got in decode.posts)
    assert server.shell.metrics.upstream_errors["p0", "no_kv_params"] >= 1


async def test_kv_older_than_half_its_lease_is_never_fetched(bench, body) -> None:
    prefill, decode, server = await bench.pair("least-loaded", kv_lease_s=1e-9)
    assert (await bench.ask(server, body)).status == 502
    assert (len(prefill.posts), decode.posts) == (3, [])  # each time computed again
    assert server.shell.metrics.upstream_errors["d0", "kv_expired"] == 3
