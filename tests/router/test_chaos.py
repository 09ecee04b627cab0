"""Engines that cut, garble and drop, clients that mangle and leave: the books must still balance.

Nothing is said here of single answers; the other files do. Every request that was admitted ends
exactly once, nothing stays open, and no callback raises.
"""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from fakenode import DONE, KV_PARAMS, SSE_HEAD, chunk, event, json_response, response
from spillway.core.invariants import check_dispatcher
from spillway.core.types import Role

STREAM = SSE_HEAD + b"".join(chunk(event(number)) for number in range(6)) + DONE
ANSWERS = [STREAM, *(json_response(status, {"usage": {}}) for status in (200, 400, 500, 503))]
PREFILLED = response(200, b'{"kv_transfer_params":%b}' % KV_PARAMS.encode())
PATIENCE = {"prefill_s": 0.1, "first_byte_s": 0.1, "stream_silence_s": 0.1, "requests_max": 15}


def chaotic_engine(draw: random.Random):
    async def handler(node, got) -> None:
        sane = node.role is Role.PREFILL and draw.random() < 0.7
        data = PREFILLED if sane else draw.choice(ANSWERS)
        fate = draw.random()
        if fate < 0.25:
            data = data[: draw.randrange(len(data))]
        elif fate > 0.95:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        while data and not got.writer.transport.is_closing():
            size = draw.choice([1, 7, 50, 1000])
            got.writer.write(data[:size])
            data = data[size:]
            if draw.random() < 0.2:
                await asyncio.sleep(0.001)
        if fate < 0.25:
            got.writer.transport.abort()

    return handler


async def chaotic_client(bench, server, body: bytes, draw: random.Random) -> None:
    client = await bench.client(server)
    for _ in range(draw.randrange(1, 4)):
        version = draw.choice([0, 1, 1, 1])
        data = b"POST /v1/completions HTTP/1.%d\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (
            version,
            len(body),
            body,
        )
        fate = draw.random()
        if fate < 0.2:
            at = draw.randrange(len(data))
            data = data[:at] + bytes([draw.randrange(256)]) + data[at + draw.randrange(3) :]
        elif fate < 0.4:
            data += data
        if client.writer.transport.is_closing():
            return
        client.send(data)
        if draw.random() < 0.2:
            await asyncio.sleep(draw.random() * 0.005)
            client.abort()
            return
        try:
            async with asyncio.timeout(0.3):
                await client.answer()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            return


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", ["headroom", "deflect"])
async def test_the_books_balance_after_chaos(
    bench, body, deflect, until, seed: int, name: str
) -> None:
    raised = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, what: raised.append(what))
    draw = random.Random(seed)
    nodes = [await bench.node(node_id) for node_id in ("p0", "p1", "d0", "d1")]
    for node in nodes:
        node.on_post = chaotic_engine(draw)
    policy = deflect() if name == "deflect" else name
    server = await bench.router(*nodes, policy=policy, **PATIENCE)
    raw = json.dumps(body).encode()
    clients = [chaotic_client(bench, server, raw, draw) for _ in range(40)]
    await asyncio.gather(*clients, kill_and_revive(draw.choice(nodes)))
    for client in bench.clients:
        client.abort()
    await until(lambda: not server.connections and not server.shell.live)
    dispatcher = server.shell.dispatcher
    check_dispatcher(dispatcher)
    assert dispatcher.live_requests == 0
    assert sum(server.shell.metrics.requests.values()) == dispatcher.arrived > 20
    assert all(node.outstanding == 0 for node in dispatcher.ledger.nodes.values())
    assert not server.broken.done()
    assert [what for what in raised if "protocol" in what] == []


async def kill_and_revive(node) -> None:
    await asyncio.sleep(0.01)
    await node.stop()
    await asyncio.sleep(0.01)
    await node.start()
