"""Requests wait by class and by client, for so long and in such numbers as they may."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import answer_decode
from spillway.router.gate import Gate, Queueing
from spillway.router.http_server import Request

QUEUES = {"default": Queueing(priority=1), "batch": Queueing(priority=0)}


class Held:
    """A decode node that answers when told, in the order asked."""

    def __init__(self, node) -> None:
        self.order: list[str] = []
        self.go_on = asyncio.Semaphore(0)
        node.on_post = self

    async def __call__(self, node, got) -> None:
        self.order.append(got.headers["x-request-id"])
        await self.go_on.acquire()
        await answer_decode(node, got)


async def gated(bench, deflect, queues=QUEUES, running_max: int = 1, **settings):
    _, decode, server = await bench.pair(deflect(), **settings)
    server.shell.gate = Gate(server.shell, running_max, queues)
    return Held(decode), server


async def ask(bench, server, body, name: str, class_name: str = "default"):
    client = await bench.client(server)
    client.post(body, headers=[f"x-request-id: {name}", f"x-slo-class: {class_name}"])
    return client


async def test_at_most_so_many_run_and_all_are_served(bench, body, deflect, until) -> None:
    held, server = await gated(bench, deflect, running_max=2)
    clients = [await ask(bench, server, body, f"r{number}") for number in range(5)]
    await until(lambda: len(server.shell.live) == 5)
    assert len(held.order) == 2
    for _ in clients:
        held.go_on.release()
    answers = await asyncio.gather(*(client.answer() for client in clients))
    assert [answer.status for answer in answers] == [200] * 5
    assert server.shell.live == {}
    assert server.shell.gate.queued() == {"default": 0, "batch": 0}


async def test_a_class_of_higher_priority_goes_first(bench, body, deflect, until) -> None:
    held, server = await gated(bench, deflect)
    names = [("first", "batch"), ("b1", "batch"), ("b2", "batch"), ("d1", "default")]
    clients = []
    for at, (name, class_name) in enumerate(names, start=1):
        clients.append(await ask(bench, server, body, name, class_name))
        await until(lambda at=at: len(server.shell.live) == at)
    for _ in clients:
        held.go_on.release()
    await asyncio.gather(*(client.answer() for client in clients))
    assert held.order == ["first", "d1", "b1", "b2"]


async def test_clients_take_turns(bench, body, deflect, until, monkeypatch) -> None:
    """A client that asks often waits behind its own requests, not in front of the others'."""
    held, server = await gated(bench, deflect)
    monkeypatch.setattr(
        Request, "client", property(lambda r: r.own[b"x-request-id"].decode()[0], lambda r, v: None)
    )
    clients = []
    for at, name in enumerate(("x0", "a1", "a2", "a3", "b1", "c1"), start=1):
        clients.append(await ask(bench, server, body, name))
        await until(lambda at=at: len(server.shell.live) == at)
    for _ in clients:
        held.go_on.release()
    await asyncio.gather(*(client.answer() for client in clients))
    assert held.order == ["x0", "a1", "b1", "c1", "a2", "a3"]


async def test_a_full_queue_refuses_with_429(bench, body, deflect, until) -> None:
    held, server = await gated(bench, deflect, {"default": Queueing(requests_max=1)})
    clients = [await ask(bench, server, body, f"r{number}") for number in range(2)]
    await until(lambda: len(server.shell.live) == 2)
    late = await ask(bench, server, body, "late")
    answer = await late.answer()
    assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    assert server.shell.gate.refused == {("default", "queue_full"): 1}
    for _ in clients:
        held.go_on.release()
    assert [(await client.answer()).status for client in clients] == [200, 200]


async def test_who_waits_for_too_long_is_refused_with_503(bench, body, deflect, until) -> None:
    held, server = await gated(bench, deflect, {"default": Queueing(wait_s_max=0.05)})
    first = await ask(bench, server, body, "first")
    await until(lambda: held.order)
    second = await ask(bench, server, body, "second")
    answer = await second.answer()
    assert (answer.status, answer.error["code"]) == (503, "queue_wait")
    assert answer.headers["retry-after"] == "1"
    held.go_on.release()
    assert (await first.answer()).status == 200


async def test_what_our_own_loop_stood_still_is_no_part_of_a_wait(
    bench, body, deflect, until
) -> None:
    held, server = await gated(bench, deflect, {"default": Queueing(wait_s_max=0.1)})
    first = await ask(bench, server, body, "first")
    await until(lambda: held.order)
    second = await ask(bench, server, body, "second")
    await until(lambda: len(server.shell.live) == 2)
    server.shell.heartbeat._lost_s += 100.0
    await asyncio.sleep(0.2)
    held.go_on.release()
    held.go_on.release()
    answers = [await first.answer(), await second.answer()]
    assert [answer.status for answer in answers] == [200, 200]


async def test_who_leaves_the_queue_is_not_served(bench, body, deflect, until) -> None:
    held, server = await gated(bench, deflect)
    first = await ask(bench, server, body, "first")
    await until(lambda: held.order)
    second, third = (
        await ask(bench, server, body, "second"),
        await ask(bench, server, body, "third"),
    )
    await until(lambda: len(server.shell.live) == 3)
    second.abort()
    await until(lambda: len(server.shell.live) == 2)
    held.go_on.release()
    held.go_on.release()
    for client in (first, third):
        assert (await client.answer()).status == 200
    assert held.order == ["first", "third"]


async def test_a_router_that_stops_tells_those_who_wait(bench, body, deflect, until) -> None:
    held, server = await gated(bench, deflect, drain_s=0.01)
    clients = [await ask(bench, server, body, f"r{number}") for number in range(3)]
    await until(lambda: len(server.shell.live) == 3)
    await server.close()
    assert [(await client.answer()).status for client in clients] == [503] * 3
    assert len(held.order) == 1


@pytest.mark.parametrize("settings", [{}, {"requests_max": 2}])
async def test_the_queue_counts_into_the_limit_of_all_requests(
    bench, body, deflect, until, settings
) -> None:
    _, server = await gated(bench, deflect, **settings)
    clients = [await ask(bench, server, body, f"r{number}") for number in range(2)]
    await until(lambda: len(server.shell.live) == 2)
    third = await ask(bench, server, body, "third")
    if settings:
        assert (await third.answer()).status == 429
    else:
        await until(lambda: len(server.shell.live) == 3)
    assert len(clients) == 2
