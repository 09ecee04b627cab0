"""Time-outs go on by what the loop stood still, and are judged all the same in the end."""

from __future__ import annotations

import asyncio

import pytest

from spillway.router.heartbeat import LOOK_S


async def silent(node, got) -> None:
    await asyncio.sleep(60)


async def test_what_was_lost_is_given_to_each_leg_and_stream_and_client(bench, body, until) -> None:
    prefill, _, server = await bench.pair(sweep_s=60.0)
    prefill.on_post = silent
    idle, busy = await bench.client(server), await bench.client(server)
    await until(lambda: len(server.connections) == 2)
    busy.post(body)
    await until(lambda: server.shell.live)
    [exchange] = server.shell.live.values()
    [conn] = [conn for conn in server.connections if conn.reader is None]
    stream = server.intake.streams["d0"]
    now_s = server.shell.clock.now_s()
    exchange.leg_since_s = now_s - 500.0
    stream._expect_line_by_s = now_s - 200.0
    client_s = conn.deadline_s
    server.shell.heartbeat._lost_s += 100.0
    server._sweep.look()
    assert exchange.leg_since_s == pytest.approx(now_s - 400.0)
    assert stream._expect_line_by_s == pytest.approx(now_s - 100.0)
    assert conn.deadline_s == pytest.approx(client_s + 100.0)
    assert idle.writer.transport.is_closing() is False


async def test_a_loop_that_stops_again_and_again_still_judges(bench, body, until) -> None:
    prefill, _, server = await bench.pair(sweep_s=60.0, prefill_s=0.01, health_interval_s=60.0)
    prefill.on_post = silent
    client = await bench.client(server)
    client.post(body)
    await until(lambda: prefill.posts)
    [exchange] = server.shell.live.values()
    exchange.leg_since_s -= 1000.0
    for _ in range(4):
        server.shell.heartbeat._lost_s += 0.1
        server._sweep.look()
        assert server.shell.metrics.upstream_errors["p0", "silent"] <= 1
        await asyncio.sleep(LOOK_S / 2)
    assert server.shell.metrics.upstream_errors["p0", "silent"] >= 1
