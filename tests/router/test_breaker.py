"""A node that answers /health and fails its requests is taken out, probed, and taken back."""

from __future__ import annotations

import pytest

from fakenode import answer_prefill
from spillway.router.breaker import Breaker
from spillway.router.settings import RouterSettings

SETTINGS = RouterSettings(
    breaker_failures=3, breaker_window_s=10.0, breaker_open_s=2.0, breaker_open_max_s=5.0
)


async def failing(node, got) -> None:
    got.writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\nno")


def test_a_node_trips_by_failures_that_are_close_together() -> None:
    breaker = Breaker(SETTINGS)
    assert [breaker.failed("a", now_s) for now_s in (0.0, 1.0, 2.0)] == [False, False, True]
    far_apart = [breaker.failed("b", now_s) for now_s in (0.0, 6.0, 12.0, 18.0, 24.0)]
    assert far_apart == [False] * 5


def test_failures_among_many_successes_are_no_outlier() -> None:
    breaker = Breaker(SETTINGS)
    breaker.failed("a", 0.0)
    for _ in range(5):
        breaker.succeeded("a", 1.0)
    assert not any(breaker.failed("a", 2.0) for _ in range(3))  # 4 of 9
    assert breaker.failed("a", 2.0), "5 of 10 are half"


def test_a_node_stays_out_for_longer_with_each_relapse_up_to_a_bound() -> None:
    breaker = Breaker(SETTINGS)
    now_s, out_s = 0.0, []
    for _ in range(3):
        breaker.failed("a", now_s)
    for _ in range(3):
        breaker.open("a", now_s)
        until_s = next(t for t in (2.0, 4.0, 5.0, 8.0) if breaker.may_return("a", now_s + t))
        out_s.append(until_s)
        now_s += until_s
        assert breaker.failed("a", now_s), "on probation, one failure is enough"
    assert out_s == [2.0, 4.0, 5.0]


def test_a_success_ends_probation_and_in_time_the_record() -> None:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed("a", 0.0)
    breaker.open("a", 0.0)
    breaker.succeeded("a", 3.0)
    assert not breaker.failed("a", 3.0)
    breaker.succeeded("a", 30.0)
    breaker.open("b", 0.0) if breaker.failed("b", 0.0) else None
    assert not breaker.failed("a", 30.0)
    assert breaker.may_return("a", 30.0)


async def test_a_node_that_fails_its_legs_is_ejected_though_healthy(bench, body, until) -> None:
    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(
        one, two, decode, policy="least-loaded", breaker_failures=3, breaker_open_s=0.1
    )
    one.on_post = failing
    for _ in range(8):
        assert (await bench.ask(server, body)).status == 200
    assert len(one.posts) == 3, "no more than it takes"
    assert server.shell.metrics.ejections == {"p0": 1}
    one.on_post = answer_prefill
    await until(lambda: server.health.nodes["p0"].is_up)
    seen = len(one.posts)
    for _ in range(4):
        assert (await bench.ask(server, body)).status == 200
    assert len(one.posts) > seen, "probed, and back"


async def test_a_relapse_ejects_at_the_first_failure(bench, body, until) -> None:
    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(
        one, two, decode, policy="least-loaded", breaker_failures=3, breaker_open_s=0.05
    )
    one.on_post = failing
    for _ in range(6):
        await bench.ask(server, body)
    await until(lambda: server.health.nodes["p0"].is_up)
    before = len(one.posts)
    for _ in range(3):
        assert (await bench.ask(server, body)).status == 200
    assert len(one.posts) == before + 1
    assert server.shell.metrics.ejections == {"p0": 2}


async def test_the_last_node_of_a_role_is_never_ejected(bench, body) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    server = await bench.router(
        prefill, decode, policy="round-robin", breaker_failures=2, retries_max=0
    )
    decode.on_post = failing
    for _ in range(4):
        assert (await bench.ask(server, body)).status == 502
    assert server.shell.metrics.ejections == {}
    assert server.shell.metrics.ejections_withheld["d0"] > 0
    assert server.shell.dispatcher.ledger.nodes["d0"].view.usable


@pytest.mark.parametrize("status", [503, 400])
async def test_a_full_node_and_a_bad_request_are_no_failures(bench, body, status: int) -> None:
    one, two, decode = await bench.node("p0"), await bench.node("p1"), await bench.node("d0")
    server = await bench.router(one, two, decode, policy="round-robin", breaker_failures=2)

    async def saying(node, got) -> None:
        got.writer.write(b"HTTP/1.1 %d No\r\ncontent-length: 2\r\n\r\nno" % status)

    one.on_post = saying
    for _ in range(8):
        await bench.ask(server, body)
    assert server.shell.metrics.ejections == {}
    assert len(one.posts) > 2
