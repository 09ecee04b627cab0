"""The engine side of HTTP: bytes come through as they were, and ends and faults are told apart."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from spillway.router.http_client import Fault, Framing
from spillway.router.pool import NodePool
from spillway.router.settings import RouterSettings


class Sink:
    def __init__(self) -> None:
        self.heads, self.reads, self.faults = [], [], []
        self.ended = 0
        self.between = None
        self.leg = None

    @property
    def over(self) -> bool:
        return bool(self.ended or self.faults)

    @property
    def body(self) -> bytes:
        return b"".join(self.reads)

    def on_head(self, head) -> None:
        self.heads.append(head)

    def on_body(self, data: bytes) -> None:
        self.reads.append(data)

    def on_end(self) -> None:
        self.ended += 1

    def on_fault(self, fault: Fault) -> None:
        self.between = self.leg.is_between_chunks()
        self.faults.append(fault)


class Scripted:
    """A server that answers each request of a connection with the next reply of the script.

    A reply is a list of writes; None in it closes the connection.
    """

    def __init__(self, *replies) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.conns = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> Scripted:
        self.server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _accept(self, reader, writer) -> None:
        self.conns += 1
        self.writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                for part in self.replies.pop(0):
                    if part is None:
                        writer.close()
                        return
                    writer.write(part)
                    await asyncio.sleep(0.001)
        writer.close()


@pytest.fixture
async def pool_of():
    started = []

    async def make(*replies, **settings):
        server = await Scripted(*replies).start()
        pool = NodePool("d0", f"http://127.0.0.1:{server.port}", RouterSettings(**settings))
        started.append((server, pool))
        return server, pool

    yield make
    for server, pool in started:
        pool.close()
        server.server.close()
        for writer in server.writers:
            writer.transport.abort()
    await asyncio.sleep(0)


async def ask(pool, until) -> Sink:
    sink = Sink()
    sink.leg = pool.get(sink, b"/x")
    await until(lambda: sink.over)
    return sink


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODY = b"4\r\nwiki\r\nA;ext=1\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"


@pytest.mark.parametrize("pieces", [1, 2, 5, 1000])
async def test_a_chunked_body_comes_through_with_its_framing(pool_of, until, pieces: int) -> None:
    data = CHUNKED + BODY
    _, pool = await pool_of([data[at : at + pieces] for at in range(0, len(data), pieces)])
    sink = await ask(pool, until)
    assert sink.body == BODY
    assert (sink.ended, sink.faults, sink.heads[0].framing) == (1, [], Framing.CHUNKED)
    assert pool.idle_conns == 1


async def test_a_body_of_known_length_and_one_without_any(pool_of, until) -> None:
    _, pool = await pool_of(
        [b"HTTP/1.1 404 No\r\nContent-Length: 5\r\n\r\nhe", b"llo"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 204 No Content\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nlink: x\r\n\r\n" + CHUNKED + BODY],
    )
    first = await ask(pool, until)
    assert (first.heads[0].status, first.heads[0].length, first.body) == (404, b"5", b"hello")
    second = await ask(pool, until)
    assert (second.heads[0].framing, second.heads[0].length) == (Framing.LENGTH, b"0")
    third = await ask(pool, until)
    assert (third.heads[0].status, third.heads[0].framing) == (204, Framing.NONE)
    fourth = await ask(pool, until)
    assert (fourth.heads[0].lines, fourth.body) == ([], BODY)
    assert pool.opened == 1


async def test_an_answer_may_end_with_its_connection(pool_of, until) -> None:
    _, pool = await pool_of([b"HTTP/1.0 200 OK\r\n\r\nab", b"cd", None])
    sink = await ask(pool, until)
    assert (sink.body, sink.ended, sink.heads[0].framing) == (b"abcd", 1, Framing.UNTIL_CLOSE)
    assert pool.idle_conns == 0


@pytest.mark.parametrize("close", ["Connection: close\r\n", ""])
async def test_a_connection_is_reused_unless_the_engine_closes_it(
    pool_of, until, close: str
) -> None:
    reply = [f"HTTP/1.1 200 OK\r\n{close}Content-Length: 2\r\n\r\nab".encode()]
    server, pool = await pool_of(reply, reply)
    for _ in range(2):
        assert (await ask(pool, until)).body == b"ab"
    assert server.conns == (2 if close else 1)


async def test_what_names_a_machine_or_a_hop_is_not_passed_on(pool_of, until) -> None:
    server, pool = await pool_of([b""])
    head = (
        "HTTP/1.1 200 OK\r\nServer: uvicorn\r\nVia: p\r\nX-Internal-Host: h\r\nX-Backend: b\r\n"
        "X-Served-By: s\r\nX-Forwarded-Server: f\r\nX-Request-Id: theirs\r\nConnection: keep-alive"
        f"\r\nKeep-Alive: 5\r\nX-Where: http://127.0.0.1:{server.port}/\r\nContent-Type: text/"
        "event-stream\r\nX-Ratelimit: 5\r\nContent-Length: 0\r\n\r\n"
    )
    server.replies[:] = [[head.encode()]]
    sink = await ask(pool, until)
    assert sink.heads[0].lines == [
        b"Content-Type: text/event-stream\r\n",
        b"X-Ratelimit: 5\r\n",
    ]
    assert sink.heads[0].is_sse


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ([None], Fault.NO_ANSWER),
        ([b"HTTP/1.1 200", None], Fault.BROKEN),
        ([CHUNKED + b"5\r\nab", None], Fault.BROKEN),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab", None], Fault.BROKEN),
        ([b"what\r\n\r\n"], Fault.BAD_RESPONSE),
        ([b"\xff\xfe"], Fault.BAD_RESPONSE),  # at once: there may never be more of it
        ([b"HTT", b"X"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000], Fault.BAD_RESPONSE),
        ([CHUNKED + b"zz\r\n"], Fault.BAD_RESPONSE),
        ([CHUNKED + BODY + CHUNKED], Fault.BAD_RESPONSE),  # a second answer in the same read
        ([CHUNKED + BODY + b"junk"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 0 OK\r\ncontent-length: 0\r\n\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.0 100 OK\r\n\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 600 OK\r\ncontent-length: 0\r\n\r\n"], Fault.BAD_RESPONSE),
        ([CHUNKED + BODY + b"\n"], Fault.BAD_RESPONSE),  # which the client's parser might mind
        ([CHUNKED + BODY + b"\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 204 OK\r\n\r\n\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n"], Fault.BAD_RESPONSE),
        ([b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n"], Fault.BAD_RESPONSE),
        (  # whose chunks httptools would not look at
            [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\t\r\n\r\n", b"3\r\nabcdef"],
            Fault.BAD_RESPONSE,
        ),
    ],
)
async def test_an_answer_that_is_none_is_a_fault_of_its_kind(pool_of, until, reply, fault) -> None:
    _, pool = await pool_of(reply)
    sink = await ask(pool, until)
    assert (sink.faults, sink.ended, pool.idle_conns) == ([fault], 0, 0)


@pytest.mark.parametrize(
    ("sent", "between"),
    [
        (b"", True),
        (b"3\r\nabc\r\n", True),
        (b"3\r\nabc", False),
        (b"3\r\nabc\r", False),
        (b"3\r\na", False),
        (b"fff\r\na", False),
        (b"3\r\nabc\r\n1", False),
    ],
)
async def test_it_is_known_whether_a_body_broke_off_between_chunks(
    pool_of, until, sent: bytes, between: bool
) -> None:
    _, pool = await pool_of([CHUNKED + sent, None])
    assert (await ask(pool, until)).between is between


async def test_a_reused_connection_that_is_dead_costs_one_free_retry(pool_of, until) -> None:
    ok = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"]
    server, pool = await pool_of(ok, [None], ok)
    await ask(pool, until)
    assert (await ask(pool, until)).body == b"ab"
    assert (server.conns, pool.retried) == (2, 1)


async def test_only_one_retry_is_free(pool_of, until) -> None:
    ok = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"]
    server, pool = await pool_of(ok, [None], [None])
    await ask(pool, until)
    assert (await ask(pool, until)).faults == [Fault.NO_ANSWER]
    assert server.conns == 2


async def test_a_fresh_connection_that_dies_is_not_retried(pool_of, until) -> None:
    server, pool = await pool_of([None])
    assert (await ask(pool, until)).faults == [Fault.NO_ANSWER]
    assert (server.conns, pool.retried) == (1, 0)


async def test_a_byte_of_the_answer_rules_out_the_retry(pool_of, until) -> None:
    ok = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"]
    server, pool = await pool_of(ok, [b"H", None])
    await ask(pool, until)
    assert (await ask(pool, until)).faults == [Fault.BROKEN]
    assert server.conns == 1


async def test_an_idle_connection_that_closes_or_talks_leaves_the_pool(pool_of, until) -> None:
    ok = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"]
    server, pool = await pool_of(ok, ok)
    await ask(pool, until)
    server.writers[0].close()
    await until(lambda: pool.idle_conns == 0)
    await ask(pool, until)
    server.writers[1].write(b"HTTP/1.1 408 Timeout\r\n\r\n")
    await until(lambda: pool.idle_conns == 0)


async def test_an_aborted_exchange_says_nothing_more_and_is_not_reused(pool_of, until) -> None:
    _, pool = await pool_of([CHUNKED, b"1\r\na\r\n"])
    sink = Sink()
    sink.leg = pool.get(sink, b"/x")
    await until(lambda: sink.heads)
    sink.leg.abort()
    await asyncio.sleep(0.01)
    assert (sink.ended, sink.faults, pool.idle_conns) == (0, [], 0)


async def test_an_exchange_can_be_aborted_before_it_is_connected(pool_of) -> None:
    server, pool = await pool_of([CHUNKED])
    sink = Sink()
    pool.get(sink, b"/x").abort()
    await asyncio.sleep(0.01)
    assert (sink.over, server.requests, pool.idle_conns) == (False, [], 0)


async def test_a_paused_connection_reads_no_further_and_is_resumed_for_the_pool(
    pool_of, until
) -> None:
    ok = [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"]
    _, pool = await pool_of([CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n"], ok)
    sink = Sink()
    sink.leg = pool.get(sink, b"/x")
    await until(lambda: sink.heads)
    sink.leg.pause()
    seen = len(sink.reads)
    await asyncio.sleep(0.01)
    assert len(sink.reads) == seen
    sink.leg.resume()
    await until(lambda: sink.over)
    assert sink.body == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    assert (await ask(pool, until)).body == b"ab"
