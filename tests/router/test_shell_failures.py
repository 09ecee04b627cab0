"""What happens when a node refuses, dies, breaks off or stays silent, and when a client leaves."""

from __future__ import annotations

import asyncio
import time

import pytest

from spillway.core.dispatcher import DispatchLimits

CANCEL_S_MAX = 0.05
# Nothing but the requests themselves finds out about the nodes.
QUIET = {"health_interval_s": 60.0, "report_retry_first_s": 60.0, "report_retry_max_s": 60.0}


async def silent(node, got) -> None:
    await asyncio.sleep(60)


def refusing(status: int):
    async def handler(node, got) -> None:
        got.writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)

    return handler


async def dying(node, got) -> None:
    got.writer.transport.abort()


async def test_a_dead_prefill_node_moves_the_request_to_another(bench, body, until) -> None:
    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(one, two, decode, policy="least-loaded", **QUIET)
    await until(lambda: len(one.gets) == 2)
    await one.stop()
    for _ in range(3):
        assert (await bench.ask(server, body)).status == 200
    assert len(two.posts) == 3
    # The first refusal took the node out of use, so only one request had to move.
    assert server.shell.metrics.upstream_errors["p0", "connection_refused"] == 1
    assert not server.shell.dispatcher.ledger.nodes["p0"].view.usable


@pytest.mark.parametrize("fault", [refusing(503), refusing(500), refusing(302), dying])
async def test_a_failing_prefill_leg_is_started_elsewhere(bench, body, fault) -> None:
    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(one, two, decode, policy="least-loaded")
    one.on_post = fault
    assert (await bench.ask(server, body)).status == 200
    assert (len(one.posts), len(two.posts), len(decode.posts)) == (1, 1, 1)


async def test_without_any_prefill_node_the_answer_is_503(bench, body) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    server = await bench.router(prefill, decode, policy="round-robin")
    await prefill.stop()
    answer = await bench.ask(server, body)
    assert (answer.status, answer.error["type"]) == (503, "server_error")
    assert answer.headers["retry-after"] == "1"
    assert "127.0.0.1" not in answer.head.decode() + answer.body.decode()
    assert decode.posts == []


@pytest.mark.parametrize("is_down", [False, True])
async def test_kv_is_used_again_only_if_no_decode_node_saw_the_request(
    bench, body, is_down: bool
) -> None:
    # vLLM has the prefill node free the KV of a request that it refuses.
    prefill = await bench.node("p0")
    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(prefill, one, two, policy="least-loaded", **QUIET)
    one.on_post = refusing(503)
    if is_down:
        await one.stop()
    for _ in range(2):
        assert (await bench.ask(server, body)).status == 200
    assert (len(prefill.posts), len(two.posts)) == (2 if is_down else 4, 2)
    assert len(one.posts) == (0 if is_down else 2)
    assert {got.body for got in one.posts} <= {got.body for got in two.posts}  # the same KV


@pytest.mark.parametrize("fault", [refusing(500), dying])
async def test_a_decode_node_that_took_the_kv_costs_a_new_prefill(bench, body, fault) -> None:
    prefill = await bench.node("p0")
    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(prefill, one, two, policy="least-loaded")
    one.on_post = fault
    assert (await bench.ask(server, body)).status == 200
    assert (len(prefill.posts), len(one.posts), len(two.posts)) == (2, 1, 1)


async def test_a_decode_node_that_dies_after_its_head_is_replaced(bench, body, deflect) -> None:
    from_head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"

    async def head_only(node, got) -> None:
        got.writer.write(from_head + b"transfer-encoding: chunked\r\n\r\n")
        await got.writer.drain()
        await asyncio.sleep(0.01)
        got.writer.transport.abort()

    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(await bench.node("p0"), one, two, policy=deflect())
    one.on_post = head_only
    answer = await bench.ask(server, body)
    assert (answer.status, answer.complete, len(two.posts)) == (200, True, 1)


async def test_retries_end(bench, body, deflect) -> None:
    nodes = [await bench.node(f"d{number}") for number in range(5)]
    for node in nodes:
        node.on_post = refusing(503)
    server = await bench.router(*nodes, policy=deflect(), retries_max=2)
    answer = await bench.ask(server, body)
    assert answer.status == 503
    assert sum(len(node.posts) for node in nodes) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 422, 429])
@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_an_engines_4xx_is_the_answer(bench, body, leg: str, status: int) -> None:
    prefill, decode, server = await bench.pair()
    text = b'{"object":"error",  "message":"too long"}'

    async def complain(node, got) -> None:
        got.writer.write(
            b"HTTP/1.1 %d No\r\ncontent-type: application/json\r\nx-ratelimit: 1\r\n"
            b"content-length: %d\r\n\r\n%b" % (status, len(text), text)
        )

    (prefill if leg == "prefill" else decode).on_post = complain
    answer = await bench.ask(server, body)
    assert (answer.status, answer.body) == (status, text)
    assert answer.headers["x-ratelimit"] == "1"
    assert answer.headers["x-spillway-route"] == "prefill"
    assert len(decode.posts) == (leg == "decode")
    assert server.shell.metrics.requests["prefill", "client_error"] == 1
    assert server.shell.live == {}


async def test_a_node_that_stays_silent_is_given_up(bench, body, until) -> None:
    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(one, two, decode, policy="least-loaded", prefill_s=0.03)
    one.on_post = silent
    assert (await bench.ask(server, body)).status == 200
    assert server.shell.metrics.upstream_errors["p0", "silent"] == 1


async def test_a_node_that_falls_mute_gives_up_what_waits_for_it(
    bench, body, until, deflect
) -> None:
    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(one, two, policy=deflect(), health_timeout_s=0.02)
    one.on_post = silent
    client = await bench.client(server)
    client.post(body)
    await until(lambda: one.posts)
    one._answer_health = silent
    assert (await client.answer()).status == 200
    assert len(two.posts) == 1


async def test_a_node_that_shuts_down_in_good_order_finishes_its_work(
    bench, body, until, deflect
) -> None:
    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(one, two, policy=deflect())
    ordinary, go_on = one.on_post, asyncio.Event()

    async def held(node, got) -> None:
        await go_on.wait()
        await ordinary(node, got)

    one.on_post = held
    client = await bench.client(server)
    client.post(body)
    await until(lambda: one.posts)
    one.stop_listening()
    await until(lambda: not server.health.nodes["d0"].is_up)
    go_on.set()
    assert (await client.answer()).complete
    assert two.posts == []
    assert (await bench.ask(server, body)).status == 200
    assert len(two.posts) == 1


async def test_a_dead_reused_connection_is_not_the_clients_problem(bench, body) -> None:
    _, decode, server = await bench.pair(**QUIET)
    await bench.ask(server, body)
    decode.on_post, answers = count_then_die(decode)
    for _ in range(2):
        assert (await bench.ask(server, body)).status == 200
    assert answers == [1, 2]


def count_then_die(decode):
    """Answer every request but the second on a connection, which finds it closed."""
    answers: list[int] = []
    ordinary = decode.on_post
    seen: set[int] = set()

    async def handler(node, got) -> None:
        if got.conn in seen:
            got.writer.transport.abort()
            return
        seen.add(got.conn)
        answers.append(len(answers) + 1)
        await ordinary(node, got)

    return handler, answers


# --- cancels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prefill", "decode", "streaming", "deflected"])
async def test_a_client_that_leaves_stops_the_work_within_50_ms(
    bench, body, until, phase: str, deflect
) -> None:
    policy = deflect() if phase == "deflected" else "round-robin"
    prefill, decode, server = await bench.pair(policy)
    node = prefill if phase == "prefill" else decode
    if phase == "streaming":

        async def endless(node, got) -> None:
            got.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while True:
                got.writer.write(b"1\r\na\r\n")
                await asyncio.sleep(0.005)

        decode.on_post = endless
    else:
        node.on_post = silent
    client = await bench.client(server)
    client.post(body)
    await until(lambda: node.posts)
    if phase == "streaming":
        await client.reader.readuntil(b"\r\n\r\n1\r\na")
    client.abort()
    left_s = time.monotonic()
    await asyncio.wait_for(node.posts[0].left.wait(), 1.0)
    assert time.monotonic() - left_s < CANCEL_S_MAX
    assert server.shell.live == {}
    route = "deflected" if phase == "deflected" else "prefill"
    assert dict(server.shell.metrics.requests) == {(route, "cancelled"): 1}


async def test_a_client_that_leaves_while_connecting_leaves_nothing_behind(bench, body) -> None:
    _, _, server = await bench.pair()
    for _ in range(5):
        client = await bench.client(server)
        client.post(body)
        await asyncio.sleep(0)
        client.abort()
    await asyncio.sleep(0.03)
    assert server.shell.live == {}
    assert server.shell.dispatcher.live_requests == 0


async def test_a_request_that_would_come_too_late_is_told_when_to_try_again(
    bench, body, deflect
) -> None:
    _, decode = await bench.node("p0"), await bench.node("d0")  # predicted: 0.25 s
    server = await bench.router(*bench.nodes, policy=deflect())
    server.shell.dispatcher.limits = DispatchLimits(reject_late=True)
    answer = await bench.ask(server, body, headers=["x-slo-ttft-ms: 200"])
    assert (answer.status, answer.error["code"]) == (503, "too_late")
    assert answer.headers["retry-after"] == "1"
    assert server.shell.metrics.decisions["too_late"] == 1
    assert decode.posts == []
    assert (await bench.ask(server, body)).status == 200
