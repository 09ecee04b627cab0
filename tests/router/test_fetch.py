"""Whole answers: collected without framing, bounded, and reported once."""

from __future__ import annotations

import pytest

from spillway.router.fetch import Fetch, Unchunker
from spillway.router.http_client import Fault
from spillway.router.pool import NodePool
from spillway.router.settings import RouterSettings


class Kept(Fetch):
    def __init__(self, bytes_max: int) -> None:
        super().__init__(bytes_max)
        self.results = []

    def done(self, head, content) -> None:
        self.results.append((head.status, content))

    def failed(self, fault) -> None:
        self.results.append(fault)


async def fetch(bench, until, *writes: bytes, bytes_max: int = 1000) -> Kept:
    node = await bench.node("d0")

    async def answer(node, got) -> None:
        for data in writes:
            got.writer.write(data)
            await got.writer.drain()

    node.on_post = answer
    pool = NodePool("d0", node.url, RouterSettings())
    kept = Kept(bytes_max)
    kept.leg = pool.post(kept, b"/x", b"x-a: 1\r\n", b"hi")
    await until(lambda: kept.results)
    pool.close()
    assert (node.posts[0].body, node.posts[0].headers["x-a"]) == (b"hi", "1")
    return kept


async def test_content_comes_without_framing(bench, until) -> None:
    head = b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n"
    kept = await fetch(bench, until, head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")
    assert kept.results == [(201, b"abcde")]


async def test_content_of_known_length_and_none(bench, until) -> None:
    kept = await fetch(bench, until, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab", b"cd")
    assert kept.results == [(200, b"abcd")]


@pytest.mark.parametrize("length", [11, 500_000])
async def test_an_answer_beyond_the_limit_is_a_fault(bench, until, length: int) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % length
    kept = await fetch(bench, until, head, b"x" * length, bytes_max=10)
    assert kept.results == [Fault.BAD_RESPONSE]


def test_the_unchunker_takes_any_pieces() -> None:
    data = b"4\r\nwiki\r\n5\r\npedia\r\n0\r\n\r\n"
    unchunker = Unchunker()
    got = [unchunker.feed(data[at : at + 3]) for at in range(0, len(data), 3)]
    assert b"".join(got) == b"wikipedia"
