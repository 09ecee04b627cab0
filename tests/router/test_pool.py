"""Keep-alive: which connection is taken, for how long one is kept, and how connecting fails."""

from __future__ import annotations

import asyncio
import socket

import pytest

from spillway.core.errors import ConfigError
from spillway.router.fetch import Fetch
from spillway.router.http_client import Fault
from spillway.router.pool import NodePool
from spillway.router.settings import RouterSettings


class Kept(Fetch):
    def __init__(self) -> None:
        super().__init__(1000)
        self.result = None

    def done(self, head, content) -> None:
        self.result = content

    def failed(self, fault) -> None:
        self.result = fault


@pytest.fixture
async def pool_of(bench):
    pools = []

    async def make(url=None, **settings):
        node = await bench.node("d0")
        pool = NodePool("d0", url or node.url, RouterSettings(**settings))
        pools.append(pool)
        return node, pool

    yield make
    for pool in pools:
        pool.close()


async def ask(pool, until, count: int = 1) -> list[Kept]:
    asked = [Kept() for _ in range(count)]
    for one in asked:
        one.leg = pool.get(one, b"/health")
    await until(lambda: all(one.result is not None for one in asked))
    return asked


async def test_the_last_connection_returned_is_the_first_taken(pool_of, until) -> None:
    node, pool = await pool_of()
    await ask(pool, until, 3)
    assert (node.conns, pool.idle_conns) == (3, 3)
    for _ in range(3):
        await ask(pool, until)
    assert (pool.opened, pool.reused) == (3, 3)
    assert len({got.conn for got in node.gets[3:]}) == 1


async def test_no_connection_is_idle_for_longer_than_its_time(pool_of, until) -> None:
    _, pool = await pool_of(upstream_idle_s=4.0, sweep_s=1.0)
    pool.sweep(10.0)
    await ask(pool, until, 2)  # both count as idle from 10.0
    pool.sweep(11.0)
    await ask(pool, until)  # renews one of them
    pool.sweep(12.9)  # the next sweep may come at 13.9, before either is past its time
    assert pool.idle_conns == 2
    pool.sweep(13.1)
    assert pool.idle_conns == 1
    pool.sweep(14.1)
    assert pool.idle_conns == 0


async def test_only_so_many_idle_connections_are_kept(pool_of, until) -> None:
    _, pool = await pool_of(upstream_idle_conns_max=2)
    await ask(pool, until, 5)
    assert pool.idle_conns == 2


async def test_a_closed_pool_keeps_nothing(pool_of, until) -> None:
    _, pool = await pool_of()
    await ask(pool, until)
    pool.close()
    await ask(pool, until)
    assert pool.idle_conns == 0


async def test_a_refused_connection_is_told_apart(pool_of, until) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    _, pool = await pool_of(f"http://127.0.0.1:{port}")
    (asked,) = await ask(pool, until)
    assert asked.result is Fault.REFUSED
    assert asked.result.is_refusal


async def test_a_host_that_does_not_answer_is_given_up(pool_of, until) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        await asyncio.sleep(0.01)
        _, pool = await pool_of(f"http://127.0.0.1:{port}", connect_s=0.03)
        (asked,) = await ask(pool, until)
        for filler in fillers:
            filler.close()
    assert asked.result is Fault.CONNECT_TIMEOUT


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:8000",
        "ftp://a:1",
        "http://",
        "http://a:99999",
        "http://a:x",
        "http://a:1/v1",
        "http://u@a:1",
        "http://a:1?x=1",
    ],
)
async def test_a_url_that_is_no_origin_is_refused_by_node(pool_of, url: str) -> None:
    with pytest.raises(ConfigError, match=r"node d0.*http://HOST:PORT"):
        await pool_of(url)
