"""KV that no decode node was told of is given back, once, and no other KV is ever named."""

from __future__ import annotations

import asyncio

import pytest

from builders import make_report
from fakenode import answer_prefill, chunk, json_response
from spillway.core.types import Role
from spillway.router import releasing
from spillway.router.http_client import UpstreamConnection
from spillway.router.pool import NodePool
from spillway.wire.release import RELEASE_PATH, read_release
from spillway.wire.report import encode

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
QUIET = {"health_interval_s": 60.0}  # only legs tell of a dead node
HELD = ("e", "r")  # of fakenode's handovers


def reporting(releases: bool):
    async def handler(node, got) -> None:
        report = make_report("p0", Role.PREFILL, releases=releases)
        got.writer.write(HEAD + chunk(encode(report)))
        await asyncio.sleep(60)

    return handler


def connecting(full: NodePool):
    """Return how connections begin where one node's never stand."""
    begin = NodePool._begin

    def begun(pool, sink, head, body, may_resend):
        if pool is not full:
            return begin(pool, sink, head, body, may_resend)
        conn = UpstreamConnection(pool)
        conn.begin(sink, head, body, may_resend=may_resend)
        return conn

    return begun


@pytest.fixture
async def start(bench, until, monkeypatch):
    """Start a prefill node, a decode node and a router; return them and what is to be freed.

    answer: to orders to free KV; None says nothing. connects: whether d0 ever takes connections.
    """

    async def start(answer=b"HTTP/1.1 202 X\r\ncontent-length: 2\r\n\r\n{}", **options):
        releases, connects = options.pop("releases", True), options.pop("connects", True)
        prefill, decode = await bench.node("p0"), await bench.node("d0")
        prefill.on_reports = reporting(releases)
        named = []

        async def on_post(node, got) -> None:
            path, _, query = got.target.partition("?")
            if path != RELEASE_PATH:
                await answer_prefill(node, got)
                return
            named.append(read_release(query))
            if answer is None:
                await asyncio.sleep(60)
            got.writer.write(answer)

        prefill.on_post = on_post
        server = await bench.router(prefill, decode, **{**QUIET, **options})
        await until(lambda: server.shell.last_reports)
        await until(lambda: all(node.is_up for node in server.health.nodes.values()))
        if not connects:
            monkeypatch.setattr(NodePool, "_begin", connecting(server.shell.pools["d0"]))
        return prefill, decode, server, named

    return start


async def leave_between_legs(bench, until, server, body) -> None:
    client = await bench.client(server)
    client.post(body)
    await until(lambda: any(exchange.kv_params for exchange in server.shell.live.values()))
    client.abort()
    await until(lambda: not server.shell.live)


async def test_a_client_that_leaves_between_the_legs_leaves_no_kv(start, bench, body, until):
    _, decode, server, named = await start(connects=False)
    await leave_between_legs(bench, until, server, body)
    await until(lambda: server.shell.metrics.releases)
    assert named == [HELD]
    assert server.shell.metrics.releases == {("p0", "taken"): 1}
    assert (decode.posts, server.shell.releasing.under_way) == ([], 0)


async def test_kv_that_no_decode_node_takes_is_given_back(start, bench, body, until):
    _, decode, server, named = await start()
    await decode.stop()
    answer = await bench.ask(server, body)
    assert answer.status == 503
    await until(lambda: server.shell.metrics.releases)
    assert named == [HELD]


async def test_kv_whose_time_ran_out_before_it_was_handed_on_is_given_back(
    start, bench, body, until
):
    _, _, server, named = await start(connects=False)
    answer = await bench.ask(server, body, headers=["x-request-timeout-ms: 50"])
    assert answer.status == 504
    await until(lambda: server.shell.metrics.releases)
    assert named == [HELD]


async def test_kv_that_is_too_old_to_be_fetched_is_given_back(start, bench, body, until):
    _, decode, server, named = await start(kv_lease_s=1e-9)
    answer = await bench.ask(server, body)
    assert answer.status == 502
    await until(lambda: len(named) == 3)  # it was prefilled as often as may be
    assert decode.posts == []


@pytest.mark.parametrize("fate", ["answers", "refuses", "dies", "is left"])
async def test_kv_that_a_decode_node_was_told_of_is_never_named(start, bench, body, until, fate):
    _, decode, server, named = await start(retries_max=0)
    came = asyncio.Event()

    async def on_post(node, got) -> None:
        came.set()
        if fate == "refuses":
            got.writer.write(json_response(500, {"error": "no"}))
        elif fate == "dies":
            got.writer.transport.abort()
        else:
            await asyncio.sleep(60)

    if fate != "answers":
        decode.on_post = on_post
    if fate == "is left":
        client = await bench.client(server)
        client.post(body)
        await came.wait()
        client.abort()
        await until(lambda: not server.shell.live)
    else:
        assert (await bench.ask(server, body)).status == (200 if fate == "answers" else 502)
    await asyncio.sleep(0.02)
    assert named == []
    assert not server.shell.metrics.releases


async def test_a_node_that_cannot_free_kv_is_not_asked(start, bench, body, until):
    _, _, server, named = await start(connects=False, releases=False)
    await leave_between_legs(bench, until, server, body)
    assert server.shell.metrics.releases == {("p0", "left_to_lease"): 1}
    assert named == []


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(json_response(503, {}), "http_503"), (b"nonsense\r\n\r\n", "bad_response"), (None, "silent")],
)
async def test_an_order_that_comes_to_nothing_is_counted_and_not_repeated(
    start, bench, body, until, monkeypatch, answer, kind
):
    monkeypatch.setattr(releasing, "ANSWER_S_MAX", 0.05)
    _, _, server, named = await start(answer, connects=False)
    await leave_between_legs(bench, until, server, body)
    await until(lambda: server.shell.metrics.releases)
    assert server.shell.metrics.releases == {("p0", kind): 1}
    assert (named, server.shell.releasing.under_way) == ([HELD], 0)


async def test_orders_under_way_are_bounded(start, bench, body, until, monkeypatch):
    monkeypatch.setattr(releasing, "ORDERS_MAX", 1)
    _, _, server, named = await start(None, connects=False)
    for _ in range(3):
        await leave_between_legs(bench, until, server, body)
    assert server.shell.metrics.releases["p0", "left_to_lease"] == 2
    await until(lambda: named)
    assert len(named) == 1
