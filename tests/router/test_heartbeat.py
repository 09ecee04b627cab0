"""What a loop that was kept from running says of it, and what waits for longer because of it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest

from fakenode import DONE, SSE_HEAD, answer_prefill, chunk, event, response
from spillway.clock import ManualClock
from spillway.router.heartbeat import BEAT_S, LATE_S, Heartbeat, Timer

STALL_S = 0.3


async def stand_still_after(
    write: Callable[[bytes], None], data: bytes, stall_s: float = STALL_S
) -> None:
    """Write, and keep the loop from running before it has read that.

    In the callback of another socket: that one's news was fetched before, so when the loop goes on
    it sees all timers first, as it does after a signal.
    """

    def stand_still() -> None:
        loop.remove_reader(one)
        write(data)
        time.sleep(stall_s)  # noqa: TID251 - instead of everything else
        over.set_result(None)

    loop = asyncio.get_running_loop()
    over = loop.create_future()
    one, other = socket.socketpair()
    with one, other:
        loop.add_reader(one, stand_still)
        other.send(b"x")
        await over


def beating(beats: int = 3) -> tuple[ManualClock, Heartbeat]:
    clock = ManualClock(100.0)
    heartbeat = Heartbeat(clock)
    for _ in range(beats):
        heartbeat.beat()
        clock.advance(BEAT_S)
    return clock, heartbeat


def test_a_beat_in_time_is_no_standstill() -> None:
    clock, heartbeat = beating()
    clock.advance(LATE_S / 2)
    heartbeat.beat()
    assert (heartbeat.stalls, heartbeat.lost_s()) == (0, 0.0)
    assert not heartbeat.stood_still_since(0.0)
    assert heartbeat.came_after_s() == clock.now_s()


def test_a_loop_without_a_heart_stands_still_for_nobody() -> None:
    clock = ManualClock()
    heartbeat = Heartbeat(clock)
    clock.advance(1000.0)
    assert (heartbeat.lost_s(), heartbeat.stood_still_since(0.0)) == (0.0, False)
    assert heartbeat.came_after_s() == 1000.0


def test_a_standstill_is_known_before_the_beat_that_ends_it_and_after() -> None:
    clock, heartbeat = beating()
    last_beat_s = clock.now_s() - BEAT_S
    clock.advance(4.0)
    for stalls in (0, 1):
        assert (heartbeat.stalls, heartbeat.lost_s()) == (stalls, pytest.approx(4.0))
        assert heartbeat.stood_still_since(last_beat_s)
        assert heartbeat.came_after_s() == pytest.approx(last_beat_s)
        if not stalls:
            heartbeat.beat()
            clock.advance(0.001)
    clock.advance(BEAT_S)
    heartbeat.beat()
    assert (heartbeat.stalls, heartbeat.lost_s()) == (1, pytest.approx(4.0))
    assert heartbeat.came_after_s() == clock.now_s(), "the sockets have been read since"
    assert not heartbeat.stood_still_since(clock.now_s())


async def test_a_timer_rings_in_time_where_nothing_stood_still(until) -> None:
    _, heartbeat = beating()
    rung = []
    Timer(heartbeat, 0.005, lambda: rung.append(True))
    await until(lambda: rung)
    cancelled = Timer(heartbeat, 0.001, lambda: rung.append(True))
    cancelled.cancel()
    await asyncio.sleep(0.01)
    assert rung == [True]


async def test_a_timer_gives_back_what_was_lost_and_rings_once(until) -> None:
    clock, heartbeat = beating()
    rung = []
    Timer(heartbeat, 0.01, lambda: rung.append(clock.now_s()))
    clock.advance(4.0)
    await asyncio.sleep(0.03)
    assert rung == [], "it looks once more"
    heartbeat.beat()
    await until(lambda: rung)
    await asyncio.sleep(0.02)
    assert len(rung) == 1


# --- what a router does with it: nodes that answered while nobody looked --------------------------


async def test_an_answer_to_health_that_nobody_read_is_no_silence(bench, until) -> None:
    prefill, _, server = await bench.pair(health_timeout_s=0.1, health_failures_max=1)
    await until(lambda: server.health.nodes["p0"].is_up)
    ordinary, stalled = prefill._answer_health, []

    async def answer(node, got) -> None:
        if not stalled:
            stalled.append(True)
            await stand_still_after(got.writer.write, response(200, b""))
        else:
            await ordinary(node, got)

    prefill._answer_health = answer
    await until(lambda: stalled and server.shell.heartbeat.stalls)
    await asyncio.sleep(0.1)
    assert server.shell.metrics.upstream_errors["p0", "health_silent"] == 0
    assert server.health.nodes["p0"].is_up


async def test_a_stream_that_went_on_while_nobody_read_is_not_silent(bench, body, deflect) -> None:
    _, decode, server = await bench.pair(deflect(), stream_silence_s=0.1)

    async def answer(node, got) -> None:
        got.writer.write(SSE_HEAD + chunk(event(0)))
        await asyncio.sleep(0.03)
        await stand_still_after(got.writer.write, chunk(event(1)) + DONE)

    decode.on_post = answer
    got = await bench.ask(server, body)
    assert (got.complete, b"error" in got.body, event(1) in got.body) == (True, False, True)
    assert server.shell.heartbeat.stalls >= 1
    assert server.shell.strain.of("d0").late_gaps == 0


async def test_reports_that_nobody_read_are_no_silence(bench, until) -> None:
    heard, stalled = [], []

    async def reports(node, got) -> None:
        heard.append(got)
        got.writer.write(SSE_HEAD)
        while True:
            got.writer.write(chunk(b"no report\n"))
            if not stalled and server.shell.metrics.reports_dropped["d0", "malformed"] >= 2:
                stalled.append(True)
                await stand_still_after(got.writer.write, chunk(b"no report\n"))
            await asyncio.sleep(0.01)

    decode = await bench.node("d0")
    decode.on_reports = reports
    server = await bench.router(decode, report_silence_s=0.15)
    await until(lambda: stalled and server.shell.heartbeat.stalls)
    dropped = server.shell.metrics.reports_dropped
    seen = dropped["d0", "malformed"]
    await until(lambda: dropped["d0", "malformed"] > seen + 5)
    assert (len(heard), dropped["d0", "silent"]) == (1, 0)


class Kept:
    """Stands in for a writer: keeps what it is given."""

    data = b""

    def write(self, data: bytes) -> None:
        self.data += data


async def test_kv_is_as_old_as_it_may_be_when_its_answer_was_read_late(bench, body) -> None:
    """Its lease ran on meanwhile: what may be past half of it is prefilled again."""
    prefill, decode, server = await bench.pair(kv_lease_s=1.0)

    async def answer(node, got) -> None:
        if len(prefill.posts) > 1:
            await answer_prefill(node, got)
            return
        writer, got.writer = got.writer, Kept()
        await answer_prefill(node, got)
        data, got.writer = got.writer.data, writer
        await stand_still_after(writer.write, data, 0.6)

    prefill.on_post = answer
    assert (await bench.ask(server, body)).complete
    assert (len(prefill.posts), len(decode.posts)) == (2, 1)
    assert server.shell.metrics.upstream_errors["p0", "kv_expired"] == 0
    assert server.shell.metrics.upstream_errors["d0", "kv_expired"] == 1


async def test_clients_and_queues_get_back_what_was_lost(bench, body, until) -> None:
    _, _, server = await bench.pair(client_idle_s=30.0)
    client = await bench.client(server)
    client.post(body)
    await client.answer()
    [conn] = [conn for conn in server.connections if conn.deadline_s < float("inf")][:1]
    before_s = conn.deadline_s
    server.shell.heartbeat._lost_s += 100.0
    await until(lambda: conn.deadline_s == pytest.approx(before_s + 100.0))
