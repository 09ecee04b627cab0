"""Keep-alive: which connection is taken, for how long one is kept, and how connecting fails."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import contextmanager, suppress
from threading import Thread

import pytest

from spillway.clock import ManualClock
from spillway.core.errors import ConfigError
from spillway.router.fetch import Fetch
from spillway.router.http_client import Fault
from spillway.router.pool import CLOCK, NodePool
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

    async def make(url=None, clock=CLOCK, **settings):
        node = await bench.node("d0")
        pool = NodePool("d0", url or node.url, RouterSettings(**settings), clock=clock)
        pools.append(pool)
        return node, pool

    yield make
    for pool in pools:
        pool.close()


@contextmanager
def prompt_node():
    """A node on a thread of its own, which answers whatever the loop does; yields its URL."""

    def answer() -> None:
        with suppress(OSError), server.accept()[0] as conn:
            while conn.recv(4096):
                conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10.0)
        Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


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
    clock = ManualClock(10.0)
    _, pool = await pool_of(clock=clock, upstream_idle_s=4.0, sweep_s=1.0)
    pool.sweep(10.0)
    await ask(pool, until, 2)  # both count as idle from 10.0
    clock.advance(1.0)
    pool.sweep(11.0)
    await ask(pool, until)  # renews one of them
    pool.sweep(12.9)  # the next sweep may come at 13.9, before either is past its time
    assert pool.idle_conns == 2
    pool.sweep(13.1)
    assert pool.idle_conns == 1
    pool.sweep(14.1)
    assert pool.idle_conns == 0


async def test_a_connection_that_no_sweep_has_looked_at_for_too_long_is_not_used(
    pool_of, until
) -> None:
    """Our own loop stood still: the engine has closed it, and the news waits in a socket."""
    clock = ManualClock(10.0)
    _, pool = await pool_of(clock=clock, upstream_idle_s=4.0, sweep_s=1.0)
    pool.sweep(10.0)
    await ask(pool, until, 2)
    clock.advance(2.5)
    await ask(pool, until)
    assert (pool.opened, pool.reused) == (2, 1), "late, and not too old"
    clock.advance(3.0)
    await ask(pool, until)
    assert (pool.opened, pool.reused, pool.idle_conns) == (3, 1, 1)


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


@pytest.mark.parametrize("turns", range(1, 9))
async def test_a_loop_that_was_kept_from_running_does_not_blame_the_node(
    pool_of, until, turns: int
) -> None:
    """Whenever it stops: before the connection stands, when it does, or when it was used."""
    with prompt_node() as url:
        _, pool = await pool_of(url, connect_s=0.03)
        asked = Kept()
        asked.leg = pool.get(asked, b"/health")
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.06)  # noqa: TID251 - not until then, but instead of everything else
        await until(lambda: asked.result is not None)
        assert asked.result == b"ok"
        (again,) = await ask(pool, until)
        assert again.result == b"ok"
        assert pool.opened == 1


@pytest.mark.parametrize("connect_s", [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07])
async def test_a_connection_whose_time_ends_once_it_stands_can_be_used_again(
    pool_of, until, connect_s: float
) -> None:
    """A slow loop hears of the connection, of an answer on it, and of its time, all at once."""
    loop = asyncio.get_running_loop()

    def drag() -> None:
        time.sleep(0.02)  # noqa: TID251 - whatever else wants to run
        if asked.result is None:
            loop.call_soon(drag)

    with prompt_node() as url:
        _, pool = await pool_of(url, connect_s=connect_s)
        asked = Kept()
        asked.leg = pool.get(asked, b"/health")
        drag()
        await until(lambda: asked.result is not None)
        assert asked.result in (b"ok", Fault.CONNECT_TIMEOUT)
        if asked.result == b"ok":
            (again,) = await ask(pool, until)
            assert again.result == b"ok"


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
