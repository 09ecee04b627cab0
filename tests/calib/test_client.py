"""Talking to an engine: what it is asked, what it says of itself, and how tokens are counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from aiohttp import web

from spillway.calib.client import EngineClient, NoReports, TokenStream
from spillway.clock import MonotonicClock
from spillway.core.errors import ConfigError, NodeError


@pytest.mark.parametrize(
    "pieces",
    [
        [b"data: 1\n\ndata: 2\n\n", b"data: 3\n\n"],
        [b"data: 1\n", b"\ndata: 2\n\nda", b"ta: 3\n\n"],
        [b"data: 1\n\n", b"data: 2\n\ndata: 3\n", b"\n", b"data: [DONE]\n\n"],
    ],
)
def test_tokens_are_counted_however_the_stream_is_cut(pieces: list[bytes]) -> None:
    stream = TokenStream(10, 3, 0.0)
    for at, piece in enumerate(pieces):
        stream.take(piece, float(at))
    assert len(stream.times_s) == 3


def test_a_token_is_dated_when_it_was_read() -> None:
    stream = TokenStream(10, 9, 0.0)
    stream.take(b"data: 1\n\ndata: 2\n\n", 1.5)
    stream.take(b"data: 3\n\n", 2.0)
    assert stream.times_s.tolist() == [1.5, 1.5, 2.0]


def client_of(url: str) -> EngineClient:
    return EngineClient(url, MonotonicClock(), Random(1))


async def wait_for(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5.0):
        while not holds():
            await asyncio.sleep(0.002)


async def test_an_engine_with_reports_says_its_limits(start) -> None:
    engine = await start()
    async with client_of(engine.url) as client:
        facts = await client.facts(None)
    assert facts.model == "fake-llama"
    assert facts.version.endswith("+fake")
    assert facts.reports
    assert (facts.context_tokens_max, facts.chunk_tokens_max) == (4096, 512)
    assert facts.kv_capacity_tokens == 60_000


async def test_a_stock_engine_does_not(start) -> None:
    engine = await start(stock=True)
    async with client_of(engine.url) as client:
        facts = await client.facts(None)
        with pytest.raises(NoReports):
            async with client.reports():
                pass
    assert not facts.reports
    assert facts.chunk_tokens_max is None


async def test_streams_fill_and_stop(start) -> None:
    engine = await start()
    async with client_of(engine.url) as client:
        await client.facts(None)
        short, long = client.start(50, 5), client.start(60, 2000)
        await wait_for(lambda: short.ended and len(long.times_s) > 3)
        client.stop(long)
        await wait_for(lambda: not engine.backend.pace.flights)
    assert len(short.times_s) == 5
    assert not short.error
    assert list(short.times_s) == sorted(short.times_s)


async def test_prompts_have_the_length_asked_for_and_no_common_beginning() -> None:
    bodies: list[dict[str, Any]] = []

    async def complete(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        return web.Response(body=b"data: {}\n\ndata: [DONE]\n\n")

    async with (
        serving(web.post("/v1/completions", complete)) as url,
        client_of(url) as client,
    ):
        client.model = "m"
        streams = [client.start(300, 1) for _ in range(4)]
        await wait_for(lambda: all(stream.ended for stream in streams))
    prompts = [body["prompt"] for body in bodies]
    assert [len(prompt) for prompt in prompts] == [300] * 4
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 4
    assert all(body["ignore_eos"] and body["stream"] for body in bodies)


async def test_what_goes_wrong_stands_in_the_stream(start) -> None:
    engine = await start()
    async with client_of(engine.url) as client:
        await client.facts(None)
        refused = client.start(5000, 1)
        await wait_for(lambda: refused.ended)
        cut = client.start(10, 2000)
        await wait_for(lambda: bool(cut.times_s))
        await engine.kill()
        await wait_for(lambda: cut.ended)
    assert "HTTP 400" in refused.error
    assert "maximum context length" in refused.error
    assert cut.error


async def test_nobody_there_is_the_operators_error(start) -> None:
    engine = await start()
    url = engine.url
    await engine.close()
    async with client_of(url) as client:
        with pytest.raises(ConfigError, match="cannot be reached"):
            await client.facts(None)


async def test_a_model_that_is_not_served_is_the_operators_error(start) -> None:
    engine = await start()
    async with client_of(engine.url) as client:
        with pytest.raises(ConfigError, match="the engine serves fake-llama"):
            await client.facts("another")


@asynccontextmanager
async def serving(*routes: web.RouteDef) -> AsyncIterator[str]:
    """Serve some routes and yield the URL."""
    app = web.Application()
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "labels", ['block_size="16",num_gpu_blocks="2500",x="None"', 'kv_cache_size_tokens="40000"']
)
async def test_what_vllm_tells_without_a_plug_in(labels: str) -> None:
    tried: list[int] = []

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m", "max_model_len": 2048}]})

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=f"vllm:cache_config_info{{{labels}}} 1.0\n")

    async def complete(request: web.Request) -> web.Response:
        largest = max((await request.json())["prompt"])
        tried.append(largest)
        if largest >= 2000:
            return web.Response(status=400, text=f"Token id {largest} is out of vocabulary")
        return web.Response(body=b"data: {}\n\n")

    routes = [
        web.get("/v1/models", models),
        web.get("/metrics", metrics),
        web.post("/v1/completions", complete),
    ]
    async with serving(*routes) as url, client_of(url) as client:
        facts = await client.facts(None)
        tried.clear()
        prompt = client.start(500, 1)
        await wait_for(lambda: prompt.ended)
    assert facts.kv_capacity_tokens == 40_000
    assert facts.context_tokens_max == 2048
    assert (facts.version, facts.reports) == ("unknown", False)
    assert 900 < tried[0] < 1024  # of the largest vocabulary that the engine took


async def test_an_engine_that_takes_no_prompt_at_all_is_an_error_in_its_words() -> None:
    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "m"}]})

    async def complete(request: web.Request) -> web.Response:
        return web.Response(status=503, text="still loading")

    routes = [web.get("/v1/models", models), web.post("/v1/completions", complete)]
    async with serving(*routes) as url, client_of(url) as client:
        with pytest.raises(NodeError, match="HTTP 503: still loading"):
            await client.facts(None)


async def test_reports_may_come_from_a_port_of_their_own(start) -> None:
    api, plug_in = await start(stock=True), await start()
    client = EngineClient(api.url, MonotonicClock(), Random(1), report_url=plug_in.url)
    async with client:
        assert (await client.facts(None)).reports


async def test_reports_of_another_version_are_not_taken_for_a_stock_engine() -> None:
    async def reports(request: web.Request) -> web.Response:
        return web.Response(body=b'{"version": 99}\n')

    async with (
        serving(web.get("/spillway/reports", reports)) as url,
        client_of(url) as client,
        client.reports() as lines,
    ):
        with pytest.raises(NodeError, match="not a node report"):
            await anext(lines)
