"""What no client may do to the router, or to the clients beside it."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: router\r\n"
NEXT = b"GET /metrics HTTP/1.1\r\nhost: router\r\n\r\n"
# One request or a broken one, and behind it what must not be taken for a second one.
SMUGGLED = {
    "length-and-chunked": HEAD
    + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked-and-length": HEAD
    + b"transfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\n",
    "two-lengths": HEAD + b"content-length: 0\r\ncontent-length: 40\r\n\r\n",
    "list-of-lengths": HEAD + b"content-length: 0, 0\r\n\r\n",
    "signed-length": HEAD + b"content-length: +0\r\n\r\n",
    "negative-length": HEAD + b"content-length: -5\r\n\r\n",
    "length-overflow": HEAD + b"content-length: 99999999999999999999999999\r\n\r\n",
    "unknown-coding": HEAD + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked-not-last": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two-codings": HEAD
    + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "space-before-colon": HEAD + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded-line": HEAD + b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "folded-coding": HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare-lf": HEAD.replace(b"\r", b"") + b"content-length: 0\n\n",
    "bare-cr": HEAD + b"x: a\rcontent-length: 5\r\ncontent-length: 0\r\n\r\n",
    "nul": HEAD + b"x: a\0b\r\ncontent-length: 0\r\n\r\n",
    "lf-in-extension": HEAD + b"transfer-encoding: chunked\r\n\r\n0;\nx\r\n\r\n",
    "negative-chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
    "prefixed-chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n",
    "connect": b"CONNECT /v1/completions HTTP/1.1\r\nhost: router\r\n\r\n",
    "upgrade": b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "http2-preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.slow
async def test_no_second_request_hides_in_or_behind_a_broken_one(cluster):
    await cluster.start("p0 d0")
    for name, request in SMUGGLED.items():
        wire = await cluster.wire()
        await wire.send(request + NEXT)
        got = await wire.read_until(b"")  # until the router closes, which it must
        assert got.count(b"HTTP/1.1 ") == 1, name
        assert b"spillway_" not in got, name
        assert b"connection: close" in got, name
        wire.close()
    assert cluster.legs("p0", "d0") == 0, "nothing of it went to an engine"
    await cluster.check_quiet()


async def test_a_body_is_not_a_request(cluster, wish):
    """What looks like a request within a length is content, and goes to no other place."""
    await cluster.start("p0 d0")
    wire = await cluster.wire()
    await wire.send(b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(NEXT))
    await wire.send(NEXT)
    await wire.post(wish(stream=False).body)
    got = await wire.read_until(b"null}")
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert b"spillway_requests_total" not in got


# --- request ids --------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["own", "numbered"])
async def test_no_choice_of_request_id_meets_another_request(cluster, wish, first):
    """A client may send any id, also one that the router would make up for somebody else."""
    await cluster.start("p0 d0")
    long = wish(output_tokens=3000)
    if first == "own":  # what the router calls its first request that has no id
        taken, later = [f"{cluster.server.shell.router_id}-1"], ()
    else:  # what it calls the second of two that chose the same one
        taken, later = ["x#1", "x"], ("x-request-id: x",)
    for name in taken:
        cluster.send(long, **{"x-request-id": name})
    await cluster.until(lambda: cluster.flights("d0") == len(taken))

    wire = await cluster.wire()
    await wire.post(wish(stream=False).body, *later)
    got = await wire.read_until(b"}")

    assert not cluster.server.broken.done(), "one client's header has stopped the router"
    assert got.startswith(b"HTTP/1.1 200")
    assert cluster.flights("d0") == len(taken)


async def test_equal_request_ids_are_kept_apart_and_given_back_as_sent(cluster, wish):
    await cluster.start("p0 d0")
    replies = await asyncio.gather(
        *(cluster.ask(wish(seed=seed), **{"x-request-id": "same"}) for seed in range(10))
    )
    for reply in replies:
        reply.check()
        assert reply.outcome == "finished"
        assert reply.headers["x-request-id"] == "same"
    await cluster.check_quiet()


# --- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"fake-llama","prompt":["\xff"]}',
        b'{"model":"fake-llama","prompt":["\xed\xa0\x80"]}',
        b'{"model":"fake-llama","prompt":"\xff"}',
        b'{"model":"\xff","prompt":"x"}',
        b'{"model":"fake-llama","prompt":"x","max_tokens":1e999}',
        b'{"model":"fake-llama","prompt":"x","max_tokens":1' + b"0" * 5000 + b"}",
        b'{"model":"fake-llama","prompt":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model":"fake-llama","prompt":[1,null]}',
        b'{"model":"fake-llama","prompt":[1,-2]}',
        b'{"model":"fake-llama","prompt":"x","kv_transfer_par\\u0061ms":{"do_remote_prefill":true}}',
        b"[]",
        b"",
        b"\xef\xbb\xbf{}",
    ],
)
async def test_a_bad_body_is_answered_and_the_connection_serves_on(cluster, wish, body):
    await cluster.start("p0 d0")
    wire = await cluster.wire()
    await wire.post(body)
    got = await wire.read_until(b"}")
    assert got.startswith(b"HTTP/1.1 400")
    await wire.post(wish(stream=False).body)
    assert (await wire.read_until(b"}")).startswith(b"HTTP/1.1 200")


# --- clients that do not read, or do not end ----------------------------------------------------


async def narrow(cluster):
    """Return the only client connection, its send buffer so small that little is in flight."""
    await cluster.until(lambda: cluster.server.connections)
    (conn,) = cluster.server.connections
    raw = conn.transport.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return conn


@pytest.mark.slow
async def test_a_client_that_reads_no_answers_is_not_answered_without_end(cluster):
    await cluster.start("p0 d0")
    wire = await cluster.wire(receive_bytes=4096)
    sending = asyncio.ensure_future(wire.send(NEXT * 3000))
    await asyncio.wait([sending], timeout=0.3)
    await asyncio.sleep(0.02)
    waiting_bytes = sum(
        conn.transport.get_write_buffer_size() for conn in cluster.server.connections
    )
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert waiting_bytes < 1024 * 1024


@pytest.mark.slow
async def test_a_client_that_never_reads_the_end_is_dropped_in_time(cluster, wish):
    await cluster.start("p0 d0", client_stall_s=0.1, engine={"time_scale": 10.0})
    wire = await cluster.wire(receive_bytes=4096)
    conn = await narrow(cluster)
    await wire.post(wish(output_tokens=3000, stream=False).body, "connection: close")
    await cluster.until(lambda: cluster.counts["FINISHED"])
    assert 0 < conn.transport.get_write_buffer_size() < 65536, "too little to be told to pause"
    await cluster.until(lambda: not cluster.server.connections)


@pytest.mark.slow
async def test_a_trailer_without_end_is_refused(cluster):
    await cluster.start("p0 d0")
    wire = await cluster.wire()
    await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ")
    sending = asyncio.ensure_future(wire.send(b"a" * 4_000_000))
    try:
        got = await wire.read_until(b"}", limit_s=1.0)
        assert got.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.slow
async def test_a_client_that_stops_reading_stops_its_engine_and_is_dropped(cluster, wish):
    await cluster.start("p0 d0", client_stall_s=0.2)
    wire = await cluster.wire(receive_bytes=4096)
    conn = await narrow(cluster)
    await wire.post(wish(output_tokens=100_000).body)
    await cluster.until(lambda: cluster.counts["DECODING"])
    await cluster.until(lambda: cluster.counts["CANCELLED"])
    assert conn not in cluster.server.connections
    await cluster.check_quiet()


# --- clients that are in their right ------------------------------------------------------------


async def test_the_start_of_a_request_may_come_with_a_long_one_before_it(cluster, wish):
    """What was read along with a body is not counted as the next request's head."""
    await cluster.start("p0 d0")
    body = json.dumps(wish(stream=False).body | {"user": "u" * 60_000}).encode()
    request = HEAD + b"content-length: %d\r\n\r\n" % len(body) + body
    wire = await cluster.wire()
    await wire.send(request + request[:40])
    assert (await wire.read_until(b"null}")).startswith(b"HTTP/1.1 200")
    await wire.send(request[40:])
    assert (await wire.read_until(b"null}")).startswith(b"HTTP/1.1 200")


async def test_a_long_body_may_come_in_many_small_chunks(cluster, wish):
    await cluster.start("p0 d0")
    body = json.dumps(wish(stream=False).body | {"user": "u" * 1_000_000}).encode()
    chunks = [body[at : at + 100] for at in range(0, len(body), 100)]
    wire = await cluster.wire()
    await wire.send(HEAD + b"transfer-encoding: chunked\r\n\r\n")
    await wire.send(b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in chunks))
    await wire.send(b"0\r\n\r\n")
    assert (await wire.read_until(b"}")).startswith(b"HTTP/1.1 200")
