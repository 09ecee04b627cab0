"""The answer's way to the client: verbatim, bounded, and never a silent end of a broken one."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakenode import DONE, SSE_HEAD, chunk, event
from spillway.router.relay import ANSWER_HELD_BYTES_MAX

CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"

MORE_THAN_HELD = b"x" * (ANSWER_HELD_BYTES_MAX + 1)


def writing(*parts: bytes, then_die: bool = False, pause_s: float = 0.002):
    async def handler(node, got) -> None:
        for part in parts:
            got.writer.write(part)
            await asyncio.sleep(pause_s)
        if then_die:
            got.writer.transport.abort()

    return handler


async def relayed(bench, deflect, handler, body, **ask):
    _, decode, server = await bench.pair(deflect())
    decode.on_post = handler
    return server, await bench.ask(server, body, **ask)


async def test_chunks_reach_the_client_as_the_engine_cut_them(bench, deflect, body) -> None:
    parts = [chunk(event(0)), chunk(event(1)[:9]), chunk(event(1)[9:]), b"1;x=y\r\n \r\n", DONE]
    _, answer = await relayed(bench, deflect, writing(SSE_HEAD, *parts), body)
    assert (answer.raw, answer.complete) == (b"".join(parts), True)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["date"] == "now"
    assert not {"server", "x-internal-host"} & answer.headers.keys()


async def test_the_head_waits_for_the_first_byte_and_not_for_more(
    bench, deflect, body, until
) -> None:
    _, decode, server = await bench.pair(deflect())
    go_on = asyncio.Event()

    async def slowly(node, got) -> None:
        got.writer.write(SSE_HEAD)
        await asyncio.sleep(0.01)
        got.writer.write(chunk(event(0)))
        await go_on.wait()
        got.writer.write(DONE)

    decode.on_post = slowly
    client = await bench.client(server)
    client.post(body)
    head = await client.reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert await client.reader.readexactly(len(chunk(event(0)))) == chunk(event(0))
    assert server.shell.metrics.ttft["deflected"].count == 1
    (exchange,) = server.shell.live.values()
    assert (exchange.body, exchange.fields, exchange.headers) == (b"", {}, b"")
    go_on.set()
    await until(lambda: not server.shell.live)


async def test_an_answer_of_known_length_keeps_it(bench, deflect, body) -> None:
    data = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n"
    _, answer = await relayed(bench, deflect, writing(data, b"01234", b"56789"), body)
    assert (answer.body, answer.headers["content-length"]) == (b"0123456789", "10")


async def test_the_client_connection_serves_the_next_request(bench, body) -> None:
    _, _, server = await bench.pair()
    client = await bench.client(server)
    for stream in (True, False, True):
        client.post({**body, "stream": stream})
        answer = await client.answer()
        assert (answer.status, answer.complete) == (200, True)
    client.post(body)
    client.post(body)  # the second one is sent ahead
    assert [(await client.answer()).status for _ in range(2)] == [200, 200]


async def test_an_http_1_0_client_gets_the_content_alone(bench, deflect, body) -> None:
    _, decode, server = await bench.pair(deflect())
    decode.on_post = writing(SSE_HEAD, chunk(event(0)), chunk(event(1)), DONE)
    client = await bench.client(server)
    client.post(body, version="1.0")
    answer = await client.answer()
    assert answer.body == event(0) + event(1) + b"data: [DONE]\n\n"
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"


async def test_an_answer_that_ends_by_closing_gets_a_framing(bench, deflect, body) -> None:
    head = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n"

    async def closing(node, got) -> None:
        got.writer.write(head + b'{"a"')
        await asyncio.sleep(0.005)
        got.writer.write(b":1}")
        await got.writer.drain()
        got.writer.close()

    _, answer = await relayed(bench, deflect, closing, body)
    assert (answer.json, answer.complete) == ({"a": 1}, True)
    assert answer.headers["transfer-encoding"] == "chunked"


# --- answers that break off ----------------------------------------------------------------------


async def test_a_broken_stream_ends_with_a_typed_error_frame(bench, deflect, body) -> None:
    handler = writing(SSE_HEAD, chunk(event(0)), chunk(event(1)), then_die=True)
    server, answer = await relayed(bench, deflect, handler, body)
    assert (answer.status, answer.complete) == (200, True)
    frames = answer.body.split(b"\n\n")
    assert frames[:2] == [event(0).strip(), event(1).strip()]
    error = json.loads(frames[2].removeprefix(b"data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "broken_off")
    assert b"[DONE]" not in answer.body
    assert b"127.0.0.1" not in answer.body
    assert server.shell.metrics.requests["deflected", "failed"] == 1


async def test_the_connection_of_a_broken_stream_is_closed(bench, deflect, body) -> None:
    _, decode, server = await bench.pair(deflect())
    decode.on_post = writing(SSE_HEAD, chunk(event(0)), then_die=True)
    client = await bench.client(server)
    client.post(body)
    assert (await client.answer()).complete
    assert await client.at_end()


async def test_an_event_that_is_cut_between_chunks_is_ended_first(bench, deflect, body) -> None:
    handler = writing(SSE_HEAD, chunk(event(0)), chunk(event(1)[:12]), then_die=True)
    _, answer = await relayed(bench, deflect, handler, body)
    whole, cut, error, rest = answer.body.split(b"\n\n")
    assert (whole + b"\n\n", cut, rest) == (event(0), event(1)[:12], b"")
    assert b"server_error" in error


async def test_a_stream_cut_inside_a_chunk_is_visibly_incomplete(bench, deflect, body) -> None:
    handler = writing(SSE_HEAD, chunk(event(0)), chunk(event(1))[:20], then_die=True)
    server, answer = await relayed(bench, deflect, handler, body)
    assert not answer.complete
    assert answer.body == event(0)
    assert server.shell.metrics.requests["deflected", "failed"] == 1


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", MORE_THAN_HELD),
        (CHUNKED_HEAD, chunk(MORE_THAN_HELD)),
    ],
)
async def test_a_long_answer_without_a_stream_that_breaks_off_is_visibly_incomplete(
    bench, deflect, body, version: str, parts
) -> None:
    _, decode, server = await bench.pair(deflect())
    decode.on_post = writing(*parts, then_die=True)
    client = await bench.client(server)
    client.post(body, version=version)
    assert not (await client.answer()).complete


async def test_a_broken_stream_to_an_http_1_0_client_has_the_frame(bench, deflect, body) -> None:
    _, decode, server = await bench.pair(deflect())
    decode.on_post = writing(SSE_HEAD, chunk(event(0)), then_die=True)
    client = await bench.client(server)
    client.post(body, version="1.0")
    assert b'data: {"error":' in (await client.answer()).body


async def test_nonsense_in_the_middle_of_a_stream_ends_it(bench, deflect, body) -> None:
    handler = writing(SSE_HEAD, chunk(event(0)), b"zzz\r\n")
    server, answer = await relayed(bench, deflect, handler, body)
    assert not answer.complete
    assert server.shell.metrics.upstream_errors["d0", "bad_response"] == 1


async def test_a_second_answer_is_not_smuggled_to_the_client(bench, deflect, body) -> None:
    extra = DONE + SSE_HEAD + chunk(b"evil") + DONE
    _, answer = await relayed(bench, deflect, writing(SSE_HEAD, chunk(event(0)), extra), body)
    assert b"evil" not in answer.raw
    assert not answer.complete


async def test_a_stream_that_falls_silent_is_ended(bench, deflect, body) -> None:
    _, decode, server = await bench.pair(deflect(), stream_silence_s=0.03)
    decode.on_post = writing(SSE_HEAD + chunk(event(0)), pause_s=60.0)
    answer = await bench.ask(server, body)
    assert b'"code":"silent"' in answer.body
    await asyncio.wait_for(decode.posts[0].left.wait(), 1.0)


# --- back-pressure -------------------------------------------------------------------------------


class Flood:
    """Sends more than the sockets between engine and client can hold, as fast as it is taken."""

    part = chunk(b"x" * 60_000)
    parts = 400

    def __init__(self) -> None:
        self.written = 0

    async def __call__(self, node, got) -> None:
        got.writer.write(SSE_HEAD)
        for _ in range(self.parts):
            got.writer.write(self.part)
            await got.writer.drain()
            self.written += 1
        got.writer.write(DONE)


@pytest.mark.slow
async def test_a_client_that_does_not_read_stops_the_engine(bench, deflect, body, until) -> None:
    _, decode, server = await bench.pair(deflect(), stream_silence_s=0.03)
    flood = decode.on_post = Flood()
    client = await bench.client(server)
    client.writer.transport.pause_reading()
    client.post(body)
    await until(lambda: server.shell.live and next(iter(server.shell.live.values())).paused)
    await asyncio.sleep(0.05)  # longer than the silence limit, which must not count this
    conn = next(iter(server.connections))
    assert conn.transport.get_write_buffer_size() < 600_000
    assert flood.written < flood.parts
    client.writer.transport.resume_reading()
    answer = await client.answer()
    assert (answer.complete, answer.raw) == (True, flood.part * flood.parts + DONE)


@pytest.mark.slow
async def test_a_client_that_never_reads_is_dropped(bench, deflect, body, until) -> None:
    _, decode, server = await bench.pair(deflect(), client_stall_s=0.03)
    decode.on_post = Flood()
    client = await bench.client(server)
    client.writer.transport.pause_reading()
    client.post(body)
    await until(lambda: decode.posts and decode.posts[0].left.is_set())
    await until(lambda: not server.connections)
    assert server.shell.metrics.requests["deflected", "cancelled"] == 1


ANSWER = b'{"choices": [{"text": "' + b"x" * 300 + b'"}]}'
LENGTH_HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        (LENGTH_HEAD % len(ANSWER), ANSWER[:100]),
        (CHUNKED_HEAD, chunk(ANSWER[:100])),
        (CHUNKED_HEAD, chunk(ANSWER)),  # all of it, but nothing says so
    ],
)
async def test_an_answer_without_a_stream_that_breaks_off_is_given_by_another_node(
    bench, body, parts: tuple[bytes, ...]
) -> None:
    await bench.node("p0")
    broken, good = await bench.node("d0"), await bench.node("d1")
    broken.on_post = writing(*parts, then_die=True)
    good.on_post = writing(LENGTH_HEAD % len(ANSWER), ANSWER[:50], ANSWER[50:])
    server = await bench.router(*bench.nodes, policy="least-loaded")
    answer = await bench.ask(server, body)
    assert (answer.status, answer.complete, answer.body) == (200, True, ANSWER)
    assert len(broken.posts) == len(good.posts) == 1
