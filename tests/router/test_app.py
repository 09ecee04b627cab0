"""Starting, stopping, and what an independent client makes of it."""

from __future__ import annotations

import asyncio
import json
import sys

import aiohttp
import pytest

from spillway.core.errors import ConfigError


async def test_a_taken_port_is_a_configuration_error(bench) -> None:
    _, _, server = await bench.pair()
    with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}.*--port"):
        await bench.router(*bench.nodes, port=server.port)


async def test_nodes_must_differ_and_include_a_decode_node(bench) -> None:
    prefill = await bench.node("p0")
    with pytest.raises(ConfigError, match="decode"):
        await bench.router(prefill)
    with pytest.raises(ConfigError, match="two nodes"):
        await bench.router(prefill, prefill)


async def test_close_lets_running_streams_end_and_takes_no_more(bench, body, until) -> None:
    _, decode, server = await bench.pair(drain_s=2.0)
    ordinary, go_on = decode.on_post, asyncio.Event()

    async def held(node, got) -> None:
        await go_on.wait()
        await ordinary(node, got)

    decode.on_post = held
    client, idle = await bench.client(server), await bench.client(server)
    idle.get("/health")
    await idle.answer()
    client.post(body)
    await until(lambda: decode.posts)
    closing = asyncio.ensure_future(server.close())
    await asyncio.sleep(0.01)
    idle.post(body)
    assert (await idle.answer()).status == 503
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the kernel likes
        await bench.client(server)
    go_on.set()
    assert (await client.answer()).complete
    await closing


async def test_close_ends_what_does_not_end_by_itself(bench, body, until) -> None:
    _, decode, server = await bench.pair(drain_s=0.02)

    async def endless(node, got) -> None:
        await asyncio.sleep(60)

    decode.on_post = endless
    client = await bench.client(server)
    client.post(body)
    await until(lambda: decode.posts)
    await server.close()
    await asyncio.wait_for(decode.posts[0].left.wait(), 1.0)
    assert server.shell.live == {}


async def test_an_independent_client_understands_it(bench, body) -> None:
    _, _, server = await bench.pair()
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    async with aiohttp.ClientSession() as session:
        for _ in range(2):
            async with session.post(url, json=body) as answer:
                assert answer.status == 200
                lines = [line async for line in answer.content]
                events = [line for line in lines if line.startswith(b"data: ")]
                assert len(events) == 4
                assert json.loads(events[0][6:])["choices"][0]["text"] == "t0 "
        async with session.post(url, json={**body, "stream": False}) as answer:
            assert (await answer.json())["choices"][0]["text"] == "t0 t1"
            assert answer.headers["x-spillway-route"] == "prefill"
        async with session.post(url, data=b"{") as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_many_requests_at_once_all_come_back_whole(bench, body) -> None:
    nodes = [await bench.node(name) for name in ("p0", "p1", "d0", "d1")]
    server = await bench.router(*nodes, policy="headroom")

    async def one(number: int) -> tuple[int, bool]:
        answer = await bench.ask(
            server, {**body, "stream": number % 3 > 0, "prompt": "x" * (number * 40)}
        )
        return answer.status, answer.complete

    results = await asyncio.gather(*(one(number) for number in range(120)))
    assert results == [(200, True)] * 120
    assert sum(len(node.posts) for node in nodes[2:]) == 120
    assert server.shell.live == {}
    assert server.shell.dispatcher.live_requests == 0


@pytest.mark.slow
async def test_a_router_process_serves_until_it_is_told_to_stop(bench) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    program = f"""
from spillway.router.app import run
from spillway.wire.config import config_from_flags
config = config_from_flags([{prefill.url!r}], [{decode.url!r}], router={{"port": 0}})
raise SystemExit(run(config, lambda server: print(server.port, flush=True)))
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    port = int(await asyncio.wait_for(process.stdout.readline(), 20.0))
    answer = await bench.ask(port, {"model": "m", "prompt": "x", "stream": True})
    assert (answer.status, answer.complete) == (200, True)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20.0) == 0
