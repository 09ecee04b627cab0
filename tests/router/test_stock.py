"""Nodes without a plug-in: their chunk is read or configured, and bounds what is deflected."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import SSE_HEAD, FakeNode, Got, chunk, event, json_response
from spillway.core.types import ChunkMode, Role
from spillway.fakeengine.engine import EngineSettings, start_engine

LONG = "a " * 5000


def tells(step_tokens: int, **scheduler: object):
    """Answer /server_info as vLLM's development pages do, and 404 elsewhere."""
    config = {"max_num_batched_tokens": step_tokens, "max_num_seqs": 64, **scheduler}

    async def answer(node: FakeNode, got: Got) -> None:
        if got.target.startswith("/server_info"):
            page = {"vllm_config": {"scheduler_config": config}}
            got.writer.write(json_response(200, page))
        else:
            got.writer.write(json_response(404, {}))

    return answer


def spec_of(server, node_id: str = "d0"):
    return server.shell.dispatcher.ledger.nodes[node_id].view.spec


def chunking(server):
    spec = spec_of(server)
    return spec.chunk_mode, spec.chunk_tokens_max


async def stock_pair(bench, answer, **spec):
    prefill, decode = await bench.node("p0"), await bench.node("d0", **spec)
    decode._answer_404 = answer
    return prefill, decode, await bench.router(prefill, decode, policy="headroom")


@pytest.mark.parametrize("mode", [ChunkMode.ENGINE, ChunkMode.STATIC])
async def test_the_chunk_is_read_from_the_node_whatever_was_configured(bench, until, mode) -> None:
    _, _, server = await stock_pair(bench, tells(512), chunk_mode=mode, chunk_tokens_max=256)
    await until(lambda: chunking(server) == (ChunkMode.STATIC, 512))


async def test_an_operators_no_is_not_overruled(bench, until) -> None:
    _, decode, server = await stock_pair(bench, tells(512), chunk_mode=ChunkMode.UNKNOWN)
    await until(lambda: any(got.target.startswith("/server_info") for got in decode.gets))
    await asyncio.sleep(0.05)
    assert chunking(server)[0] is ChunkMode.UNKNOWN


@pytest.mark.parametrize(
    "answer", [FakeNode._answer_404, tells(512, scheduler_cls="spillway.engine.scheduler.make")]
)
async def test_what_a_node_does_not_tell_stays_as_configured(bench, until, answer) -> None:
    own = answer if answer is not FakeNode._answer_404 else None
    prefill, decode = await bench.node("p0"), await bench.node("d0", chunk_tokens_max=256)
    if own:
        decode._answer_404 = own
    server = await bench.router(prefill, decode)
    await until(lambda: any(got.target.startswith("/server_info") for got in decode.gets))
    await asyncio.sleep(0.05)
    assert chunking(server) == (ChunkMode.ENGINE, 256)


async def test_a_page_that_is_not_vllms_is_counted(bench, until) -> None:
    _, _, server = await stock_pair(bench, tells(0))
    errors = server.shell.metrics.upstream_errors
    await until(lambda: errors["d0", "server_info"] == 1)


async def test_a_node_that_is_back_before_it_answered_is_asked_anew(bench, until) -> None:
    asked = []

    async def answer(node: FakeNode, got: Got) -> None:
        if got.target.startswith("/server_info"):
            asked.append(got)
            if len(asked) == 1:
                await got.left.wait()  # the first question is never answered
        await tells(512)(node, got)

    _, _, server = await stock_pair(bench, answer)
    await until(lambda: asked)
    server.intake.reopen("d0")
    await until(lambda: chunking(server) == (ChunkMode.STATIC, 512))
    await until(asked[0].left.is_set)
    assert len(asked) == 2


async def test_a_node_that_was_started_anew_is_asked_again(bench, until) -> None:
    _, decode, server = await stock_pair(bench, tells(512))
    await until(lambda: chunking(server) == (ChunkMode.STATIC, 512))
    await decode.stop()
    await until(lambda: not server.shell.dispatcher.ledger.nodes["d0"].view.usable)
    decode._answer_404 = tells(320)
    await decode.start()
    await until(lambda: chunking(server) == (ChunkMode.STATIC, 320))


async def test_a_plug_in_that_leaves_the_engine_to_itself_is_believed(until, bench) -> None:
    engine = await start_engine(
        EngineSettings(role=Role.DECODE, chunk_mode=ChunkMode.STATIC, chunk_tokens_max=320)
    )
    decode = FakeNode("d0", Role.DECODE)
    decode.port = engine.port
    prefill = await bench.node("p0")
    try:
        server = await bench.router(prefill, decode)
        await until(lambda: chunking(server) == (ChunkMode.STATIC, 320))
    finally:
        await engine.close()


# --- what is deflected ---------------------------------------------------------------------------


async def one_stream_and_no_prefill(bench, until, server, prefill) -> None:
    """Let a stream with a target of 60 ms decode on d0, then take the prefill node away."""
    client = await bench.client(server)
    client.post({"model": "m", "prompt": "hi", "max_tokens": 500, "stream": True})
    view = server.shell.dispatcher.ledger.nodes["d0"].view
    await until(lambda: view.decode_seqs == 1)
    await prefill.stop()
    await until(lambda: not server.shell.dispatcher.ledger.nodes["p0"].view.usable)


async def stream_on(node: FakeNode, got: Got) -> None:
    got.writer.write(SSE_HEAD + chunk(event(0)))
    await got.writer.drain()
    if "hi" in got.json["prompt"]:
        await asyncio.sleep(60)
    got.writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("spec", "status"),
    [
        ({"chunk_mode": ChunkMode.STATIC, "chunk_tokens_max": 512}, 200),
        ({"chunk_mode": ChunkMode.STATIC, "chunk_tokens_max": 2048}, 503),
        ({"chunk_mode": ChunkMode.UNKNOWN}, 503),
        ({"chunk_mode": ChunkMode.ENGINE}, 503),  # a plug-in that never reported
    ],
)
async def test_a_prompt_is_deflected_only_where_the_worst_step_is_safe(
    bench, until, body, spec, status
) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0", **spec)
    decode.on_post = stream_on
    server = await bench.router(prefill, decode, policy="headroom")
    await one_stream_and_no_prefill(bench, until, server, prefill)
    answer = await bench.ask(server, body | {"prompt": LONG})
    assert answer.status == status
    assert answer.headers.get("x-spillway-route") == ("deflected" if status == 200 else None)


async def test_late_gaps_end_deflection_to_a_stock_node_and_good_ones_bring_it_back(
    bench, until
) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0", chunk_mode=ChunkMode.STATIC)

    async def slow_stream(node: FakeNode, got: Got) -> None:
        got.writer.write(SSE_HEAD)
        for number in range(12):
            got.writer.write(chunk(event(number)))
            await got.writer.drain()
            await asyncio.sleep(0.004)
        got.writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    decode.on_post = slow_stream
    server = await bench.router(
        prefill, decode, strain_gaps_min=5, strain_rest_s=0.1, gap_sample_every=1
    )
    view = server.shell.dispatcher.ledger.nodes["d0"].view
    asked = {"model": "m", "prompt": "hi", "max_tokens": 12, "stream": True}
    answer = await bench.ask(server, asked, headers=["x-slo-tbt-ms: 0.5"])
    assert answer.status == 200
    await until(lambda: view.over_budget)
    assert server.shell.metrics.strains["d0"] == 1
    await until(lambda: not view.over_budget)
    await bench.ask(server, asked, headers=["x-slo-tbt-ms: 60000"])
    await asyncio.sleep(0.1)
    assert server.shell.metrics.strains["d0"] == 1
