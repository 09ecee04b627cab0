"""No request is worked on past its client's patience, and the router's end ends every phase."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import SSE_HEAD, chunk, event

QUIET = {"health_interval_s": 60.0, "report_retry_first_s": 60.0, "report_retry_max_s": 60.0}
KV_FAILED = (
    b'data: {"error": {"message": "KV load failed", "type": "InternalServerError", "code": 500}}'
)


async def silent(node, got) -> None:
    await asyncio.sleep(60)


def failing_after(delay_s: float):
    async def handler(node, got) -> None:
        await asyncio.sleep(delay_s)
        got.writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno")

    return handler


@pytest.mark.parametrize("phase", ["prefill", "decode", "deflected"])
async def test_a_request_that_nobody_waits_for_is_given_up(bench, body, deflect, phase) -> None:
    policy = deflect() if phase == "deflected" else "round-robin"
    prefill, decode, server = await bench.pair(policy)
    node = prefill if phase == "prefill" else decode
    node.on_post = silent
    answer = await bench.ask(server, body, headers=["x-request-timeout-ms: 30"])
    assert (answer.status, answer.error["code"]) == (504, "deadline_passed")
    await asyncio.wait_for(node.posts[0].left.wait(), 1.0)
    assert len(node.posts) == 1
    assert server.shell.live == {}


async def test_no_leg_is_retried_past_the_deadline(bench, body, deflect) -> None:
    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(one, two, policy=deflect(), sweep_s=5.0, **QUIET)
    one.on_post = failing_after(0.05)
    answer = await bench.ask(server, body, headers=["x-request-timeout-ms: 20"])
    assert (answer.status, two.posts) == (504, [])
    assert (await bench.ask(server, body, headers=["x-request-timeout-ms: 5000"])).status == 200
    assert len(two.posts) == 1


async def test_the_operators_patience_bounds_the_clients(bench, body) -> None:
    prefill, _, server = await bench.pair(patience_s=0.03)
    prefill.on_post = silent
    answer = await bench.ask(server, body, headers=["x-request-timeout-ms: 60000"])
    assert answer.status == 504


async def test_patience_ends_with_the_first_byte(bench, body, deflect) -> None:
    _, decode, server = await bench.pair(deflect(), patience_s=0.04)

    async def slow_stream(node, got) -> None:
        got.writer.write(SSE_HEAD)
        for number in range(5):
            got.writer.write(chunk(event(number)))
            await asyncio.sleep(0.03)
        got.writer.write(b"0\r\n\r\n")

    decode.on_post = slow_stream
    assert (await bench.ask(server, body)).complete


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
async def test_a_patience_that_is_none_is_refused(bench, body, value: str) -> None:
    _, _, server = await bench.pair()
    answer = await bench.ask(server, body, headers=[f"x-request-timeout-ms: {value}"])
    assert (answer.status, answer.error["param"]) == (400, "x-request-timeout-ms")


@pytest.mark.parametrize("with_tokens", [False, True])
async def test_a_stream_that_begins_with_the_engines_failure_is_moved(
    bench, body, with_tokens: bool
) -> None:
    """So vLLM says that it could not load the KV: nothing has reached the client yet."""
    prefill = await bench.node("p0")
    one, two = await bench.node("d0"), await bench.node("d1")
    server = await bench.router(prefill, one, two, policy="least-loaded")

    async def kv_load_failure(node, got) -> None:
        first = chunk(event(0)) if with_tokens else b""
        failure = chunk(KV_FAILED + b"\n\n") + chunk(b"data: [DONE]\n\n")
        got.writer.write(SSE_HEAD + first + failure + b"0\r\n\r\n")

    one.on_post = kv_load_failure
    answer = await bench.ask(server, body)
    assert answer.complete
    assert b"error" not in answer.body
    assert answer.body.count(event(0)) == 1, "no token twice"
    assert (len(prefill.posts), len(one.posts), len(two.posts)) == (2, 1, 1)


async def test_a_stream_that_begins_with_the_clients_fault_is_passed_on(bench, body) -> None:
    prefill, decode, server = await bench.pair()
    fault = b'data: {"error": {"message": "no", "type": "BadRequestError", "code": 400}}\n\n'

    async def complaining(node, got) -> None:
        got.writer.write(SSE_HEAD + chunk(fault) + b"0\r\n\r\n")

    decode.on_post = complaining
    answer = await bench.ask(server, body)
    assert (answer.body, len(prefill.posts)) == (fault, 1)


async def test_a_broken_stream_leaves_a_clean_connection_open(bench, body, deflect) -> None:
    """The error frame ends the answer properly, so the connection serves the next request."""
    _, decode, server = await bench.pair(deflect())
    ordinary = decode.on_post

    async def dying(node, got) -> None:
        decode.on_post = ordinary
        got.writer.write(SSE_HEAD + chunk(event(0)))
        await got.writer.drain()
        await asyncio.sleep(0.01)
        got.writer.transport.abort()

    decode.on_post = dying
    client = await bench.client(server)
    client.post(body)
    first = await client.answer()
    assert (first.complete, b'"error"' in first.body) == (True, True)
    client.post(body)
    second = await client.answer()
    assert (second.complete, b'"error"' in second.body) == (True, False)


async def test_both_pools_down_is_503_and_back_when_they_are(bench, body, until) -> None:
    prefill, decode, server = await bench.pair()
    await until(lambda: server.health.nodes["d0"].is_up)
    await prefill.stop()
    await decode.stop()
    await until(lambda: not any(node.is_up for node in server.health.nodes.values()))
    answer = await bench.ask(server, body)
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await bench.page(server, "/health")).status == 503
    await prefill.start()
    await decode.start()
    await until(lambda: all(node.is_up for node in server.health.nodes.values()))
    assert (await bench.ask(server, body)).status == 200


@pytest.mark.parametrize("phase", ["prefill", "decode", "deflected", "streaming"])
async def test_a_router_that_stops_says_so_in_every_phase(
    bench, body, until, deflect, phase: str
) -> None:
    policy = deflect() if phase in ("deflected", "streaming") else "round-robin"
    prefill, decode, server = await bench.pair(policy, drain_s=0.01)
    node = prefill if phase == "prefill" else decode

    async def one_token(node, got) -> None:
        got.writer.write(SSE_HEAD + chunk(event(0)))
        await asyncio.sleep(60)

    node.on_post = one_token if phase == "streaming" else silent
    client = await bench.client(server)
    client.post(body)
    await until(lambda: node.posts)
    if phase == "streaming":
        await until(lambda: next(iter(server.shell.live.values())).started)
    await server.close()
    answer = await client.answer()
    assert b'"code":"shutting_down"' in answer.body
    assert answer.status == (200 if phase == "streaming" else 503)
    await asyncio.wait_for(node.posts[0].left.wait(), 1.0)
