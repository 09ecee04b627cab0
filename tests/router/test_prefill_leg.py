"""What the answer of a prefill leg means."""

from __future__ import annotations

import pytest

from fakenode import KV_PARAMS, answer_prefill, chunk, json_response, response


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": []},
        {"choices": [], "kv_transfer_params": None},
        {"choices": [], "kv_transfer_params": [1]},
        {"choices": [], "kv_transfer_params": "x"},
    ],
)
async def test_an_answer_without_kv_params_is_a_failed_leg(bench, body, answer) -> None:
    async def without(node, got) -> None:
        got.writer.write(json_response(200, answer))

    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(one, two, decode, policy="least-loaded")
    one.on_post = without
    assert (await bench.ask(server, body)).status == 200
    assert (len(one.posts), len(two.posts), len(decode.posts)) == (1, 1, 1)
    assert server.shell.metrics.upstream_errors["p0", "no_kv_params"] == 1


async def test_an_answer_that_is_not_json_is_a_failed_leg(bench, body) -> None:
    async def nonsense(node, got) -> None:
        got.writer.write(response(200, b"<html>"))

    prefill, _, server = await bench.pair()
    prefill.on_post = nonsense
    answer = await bench.ask(server, body)
    assert answer.status == 503
    assert "html" not in answer.body.decode()


async def test_a_chunked_answer_is_read_too(bench, body) -> None:
    async def chunked(node, got) -> None:
        got.writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in (b'{"kv_transfer_params":', KV_PARAMS.encode(), b"}"):
            got.writer.write(chunk(part))
        got.writer.write(b"0\r\n\r\n")

    prefill, decode, server = await bench.pair()
    prefill.on_post = chunked
    assert (await bench.ask(server, body)).status == 200
    assert decode.posts[0].body.endswith(b'"kv_transfer_params":' + KV_PARAMS.encode() + b"}")


async def test_an_answer_is_asked_for_uncompressed(bench, body) -> None:
    prefill, decode, server = await bench.pair()
    await bench.ask(server, body, headers=("accept-encoding: gzip",))
    assert prefill.posts[0].headers["accept-encoding"] == "identity"
    assert prefill.posts[0].head.lower().count(b"accept-encoding") == 1
    assert decode.posts[0].headers["accept-encoding"] == "gzip"


async def test_an_answer_beyond_the_limit_is_a_failed_leg(bench, body) -> None:
    prefill, _, server = await bench.pair(answer_bytes_max=100)
    prefill.on_post = answer_prefill
    assert (await bench.ask(server, body)).status == 503
    assert server.shell.metrics.upstream_errors["p0", "bad_response"] == 1
