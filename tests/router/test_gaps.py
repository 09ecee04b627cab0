"""The sampled streams' gaps: the engine's are counted, those of a client that pauses are not."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import DONE, SSE_HEAD, chunk, event
from spillway.clock import ManualClock
from spillway.router.gaps import GapMeter
from spillway.router.metrics import RouterMetrics


def test_a_gap_is_the_time_between_two_reads() -> None:
    clock, metrics, written = ManualClock(), RouterMetrics(), []
    meter = GapMeter(written.append, clock, metrics, "prefill", 0.06)
    for gap_s in (0.01, 0.1):
        clock.advance(gap_s)
        meter(b"t")
    assert (metrics.gap["prefill"].count, metrics.gaps_late["prefill"]) == (2, 1)
    assert metrics.gap["prefill"].total == pytest.approx(0.11)
    assert written == [b"t", b"t"]


def test_the_gap_after_a_clients_pause_is_not_counted() -> None:
    clock, metrics, written = ManualClock(), RouterMetrics(), []
    meter = GapMeter(written.append, clock, metrics, "prefill", 0.06)
    clock.advance(30.0)
    meter.skip()
    meter(b"a")
    clock.advance(0.01)
    meter(b"b")
    assert (metrics.gap["prefill"].count, metrics.gaps_late["prefill"]) == (1, 0)
    assert written == [b"a", b"b"]


async def test_a_client_that_stops_reading_does_not_look_like_a_slow_engine(
    bench, body, until
) -> None:
    """Its pause ends after a pause of the engine's, which nobody can tell from its own."""

    async def answer(node, got) -> None:
        got.writer.write(SSE_HEAD + chunk(event(0)))
        await resumed.wait()
        got.writer.write(chunk(event(1)) + DONE)

    resumed = asyncio.Event()
    _, decode, server = await bench.pair(gap_sample_every=1)
    decode.on_post = answer
    client = await bench.client(server)
    client.post(body)
    await until(lambda: any(one.started for one in server.shell.live.values()))
    [exchange] = server.shell.live.values()
    exchange.pause()
    exchange.resume()
    resumed.set()
    got = await client.answer()
    assert got.complete
    assert server.shell.metrics.gap["prefill"].count == 0
