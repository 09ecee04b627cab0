"""The client side of HTTP: what is accepted, what is refused, and when a connection ends."""

from __future__ import annotations

import asyncio

import pytest

from spillway.router.http_server import ClientConnection, Request
from spillway.router.settings import RouterSettings


class EchoFront:
    """Answers with what it got; `hold` keeps requests unanswered."""

    def __init__(self, **settings) -> None:
        self.settings = RouterSettings(**settings)
        self.connections: set[ClientConnection] = set()
        self.now_s = 0.0
        self.requests: list[Request] = []
        self.bad: list[int] = []
        self.hold = False
        self.left = 0

    def on_request(self, conn: ClientConnection, request: Request) -> None:
        self.requests.append(request)
        if self.hold:
            conn.reader = self
        else:
            conn.respond(request, 200, b"%b %b" % (request.target, request.body))

    def on_bad_request(self, status: int) -> None:
        self.bad.append(status)

    def client_left(self) -> None:
        self.left += 1

    def pause(self) -> None: ...

    def resume(self) -> None: ...


@pytest.fixture
async def front_of(bench):
    """Start a front with some settings; returns it and a function that connects to it."""
    servers = []

    async def start(**settings):
        front = EchoFront(**settings)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: ClientConnection(front), "127.0.0.1", 0)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]
        return front, await bench.client(port)

    yield start
    for server in servers:
        server.close()


def get(path: str = "/x", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: a", *headers, "", ""]).encode()


async def test_a_connection_is_kept_for_the_next_request(front_of) -> None:
    _, client = await front_of()
    for number in range(3):
        client.post(b"n%d" % number, "/x")
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"/x n%d" % number)
        assert "connection" not in answer.headers


async def test_requests_sent_ahead_are_answered_in_order(front_of) -> None:
    front, client = await front_of()
    client.send(b"".join(get(f"/{number}") for number in range(2000)))
    for number in range(2000):
        assert (await client.answer()).body == b"/%d " % number
    assert [request.target for request in front.requests[:3]] == [b"/0", b"/1", b"/2"]


async def test_a_request_sent_ahead_waits_for_the_one_in_progress(front_of, until) -> None:
    front, client = await front_of()
    front.hold = True
    client.send(get("/1") + get("/2"))
    await until(lambda: front.requests)
    await asyncio.sleep(0.01)
    assert len(front.requests) == 1
    conn = next(iter(front.connections))
    front.hold = False
    conn.respond(front.requests[0], 200, b"one")
    assert (await client.answer()).body == b"one"
    assert (await client.answer()).body == b"/2 "


async def test_a_client_that_sends_far_ahead_is_no_longer_read(front_of, until) -> None:
    front, client = await front_of()
    front.hold = True
    client.send(get("/1"))
    await until(lambda: front.requests)
    client.send(b"".join(get("/ahead", "x: " + "y" * 8000) for _ in range(2000)))  # 16 MB
    await asyncio.sleep(0.03)
    assert client.writer.transport.get_write_buffer_size() > 1_000_000
    front.hold = False
    next(iter(front.connections)).respond(front.requests[0], 200, b"one")
    for _ in range(2001):
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("pieces", [1, 3, 7])
async def test_a_request_may_come_in_any_pieces(front_of, pieces: int) -> None:
    _, client = await front_of()
    data = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
    for at in range(0, len(data), pieces):
        client.send(data[at : at + pieces])
        await asyncio.sleep(0)
    assert (await client.answer()).body == b"/x hello"


async def test_a_chunked_body_is_put_together_and_its_trailers_are_dropped(front_of) -> None:
    front, client = await front_of()
    head = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nx-slo-tbt-ms: 50\r\n\r\n"
    client.send(head + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-slo-tbt-ms: 1\r\nx-evil: 1\r\n\r\n")
    assert (await client.answer()).body == b"/x abcdefg"
    assert front.requests[0].own[b"x-slo-tbt-ms"] == b"50"
    assert front.requests[0].lines == []


BOTH = b"content-length: 3\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS to a plain port
        (b"POST /x HTTP/1.1\r\nhost: a\r\n" + BOTH + b"\r\n0\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n", 400),
        (b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"GET /x HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /x HTTP/1.1\r\nhost : a\r\n\r\n", 400),
        (b"GET /x HTTP/1.1\r\nhost: a\r\n folded\r\n\r\n", 400),
        (b"GET /x HTTP/2.0\r\nhost: a\r\n\r\n", 505),
        (b"GET /x HTTP/1.1\r\nhost: a\r\nexpect: miracles\r\n\r\n", 417),
        (b"GET /x HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 40_000, 431),
        (b"GET /" + b"y" * 40_000, 431),
        (b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 2000\r\n\r\n", 413),
        (
            b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n7d0\r\n"
            + b"z" * 2000,
            413,
        ),
    ],
)
async def test_what_cannot_be_served_is_refused_and_the_connection_ends(
    front_of, data: bytes, status: int
) -> None:
    front, client = await front_of(body_bytes_max=1000)
    client.send(data)
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert answer.error["type"] == "invalid_request_error" or status >= 500
    assert await client.at_end()
    assert (front.requests, front.bad) == ([], [status])


async def test_a_fault_after_a_good_request_leaves_that_one_its_answer(front_of) -> None:
    front, client = await front_of()
    client.send(get("/good") + b"BAD\r\n\r\n" + get("/never"))
    assert (await client.answer()).body == b"/good "
    assert (await client.answer()).status == 400
    assert await client.at_end()
    assert len(front.requests) == 1


async def test_a_client_that_waits_for_permission_gets_it(front_of) -> None:
    _, client = await front_of()
    client.send(b"POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
    assert (await client.answer()).status == 100
    client.send(b"ok")
    assert (await client.answer()).body == b"/x ok"


async def test_permission_is_not_given_for_a_body_that_is_too_large(front_of) -> None:
    _, client = await front_of(body_bytes_max=10)
    client.send(
        b"POST /x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 11\r\n\r\n"
    )
    assert (await client.answer()).status == 413


async def test_http_1_0_is_answered_and_closed(front_of) -> None:
    front, client = await front_of()
    client.send(b"GET /x HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await client.at_end()
    assert front.requests[0].http10


async def test_a_client_may_ask_to_close(front_of) -> None:
    _, client = await front_of()
    client.send(get("/x", "connection: close"))
    assert (await client.answer()).headers["connection"] == "close"
    assert await client.at_end()


async def test_an_offer_to_upgrade_is_declined_by_answering(front_of) -> None:
    front, client = await front_of()
    client.send(get("/x", "connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings:"))
    answer = await client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert front.requests[0].lines == []


async def test_headers_that_only_concern_this_connection_are_set_apart(front_of) -> None:
    front, client = await front_of()
    named = ("Connection: x-hop, keep-alive", "X-Hop: 1", "TE: trailers", "X-Request-Id: r ")
    client.send(get("/x", "Authorization: Bearer s", *named, "X-Other:  two words"))
    await client.answer()
    request = front.requests[0]
    assert request.lines == [b"Authorization: Bearer s\r\n", b"X-Other: two words\r\n"]
    assert request.own[b"x-request-id"] == b"r"


async def test_a_client_that_leaves_is_noticed_while_it_waits(front_of, until) -> None:
    front, client = await front_of()
    front.hold = True
    client.send(get())
    await until(lambda: front.requests)
    client.writer.write_eof()
    await until(lambda: front.left)
    await until(lambda: not front.connections)
    assert front.left == 1


async def test_a_slow_request_an_idle_client_and_a_silent_one_are_given_up(front_of) -> None:
    front, client = await front_of(request_complete_s=30.0, client_idle_s=75.0)
    client.send(get())
    await client.answer()
    (conn,) = front.connections
    assert conn.deadline_s == 75.0
    client.send(b"GET /x HT")
    await asyncio.sleep(0.01)
    assert conn.deadline_s == 30.0
    conn.expire()
    answer = await client.answer()
    assert answer.status == 408
    assert await client.at_end()


async def test_an_idle_connection_that_expires_just_closes(front_of) -> None:
    front, client = await front_of()
    await asyncio.sleep(0.01)
    (conn,) = front.connections
    conn.expire()
    assert await client.at_end()
    assert front.bad == []


async def test_connections_beyond_the_limit_are_closed(front_of, bench) -> None:
    front, client = await front_of(connections_max=1)
    client.send(get())
    await client.answer()
    other = await bench.client(client.writer.get_extra_info("peername")[1])
    assert await other.at_end()
    assert front.bad == [503]
    client.send(get())
    assert (await client.answer()).status == 200


async def test_small_writes_are_sent_at_once(front_of) -> None:
    import socket

    front, client = await front_of()
    client.send(get())
    await client.answer()
    raw = next(iter(front.connections)).transport.get_extra_info("socket")
    assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_an_answer_to_head_has_no_content(front_of) -> None:
    _, client = await front_of()
    client.send(b"HEAD /long HTTP/1.1\r\nhost: r\r\n\r\n")
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert b"content-length: 6\r\n" in head
    client.get("/next")
    assert (await client.answer()).body == b"/next "
