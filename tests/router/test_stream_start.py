"""The engine's own failure at the beginning of a stream is known for what it is, however cut."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import DONE, SSE_HEAD, chunk, event
from spillway.router.stream_start import HELD_BYTES_MAX, is_failed_start

FAILURE = b'data: {"error": {"message": "KV load failed", "type": "X", "code": 500}}\n\n'
FAULT = FAILURE.replace(b"500", b"400")
TOKENS = event(0) + event(1)


def verdicts(pieces: list[bytes], *, is_chunked: bool) -> list[bool | None]:
    """What is said after each piece, up to the first answer."""
    said: list[bool | None] = []
    for end in range(1, len(pieces) + 1):
        said.append(is_failed_start(b"".join(pieces[:end]), is_chunked=is_chunked))
        if said[-1] is not None:
            break
    return said


def each_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def in_chunks(content: bytes, size_bytes: int) -> bytes:
    return b"".join(
        chunk(content[at : at + size_bytes]) for at in range(0, len(content), size_bytes)
    )


@pytest.mark.parametrize("size_bytes", [1, 2, 7, 14, 15, 16, 40, 1000])
@pytest.mark.parametrize("failure", [FAILURE, FAILURE.replace(b"\n\n", b"\r\n\r\n")])
def test_a_failure_is_known_in_chunks_of_any_size(failure: bytes, size_bytes: int) -> None:
    raw = in_chunks(failure, size_bytes)
    for at in range(1, len(raw)):
        assert verdicts([raw[:at], raw[at:]], is_chunked=True)[-1] is True
    assert verdicts(each_byte(raw), is_chunked=True)[-1] is True


def test_a_failure_is_known_without_chunks_and_without_its_last_line() -> None:
    assert verdicts(each_byte(FAILURE), is_chunked=False)[-1] is True
    cut = FAILURE.rstrip()
    assert is_failed_start(cut, is_chunked=False) is None
    assert is_failed_start(cut, is_chunked=False, is_all=True) is True
    assert is_failed_start(in_chunks(cut, 9), is_chunked=True, is_all=True) is True


@pytest.mark.parametrize("size_bytes", [1, 9, 15, 1000])
@pytest.mark.parametrize("content", [TOKENS, FAULT + FAILURE, b": hello\n\n", b"\r\n" * 20])
def test_any_other_stream_is_none_however_cut(content: bytes, size_bytes: int) -> None:
    raw = in_chunks(content, size_bytes)
    assert verdicts(each_byte(raw), is_chunked=True)[-1] is False
    assert verdicts(each_byte(content), is_chunked=False)[-1] is False


def test_a_token_is_held_back_until_its_event_is_complete() -> None:
    raw = chunk(event(0)) + chunk(event(1))
    after = len(verdicts(each_byte(raw), is_chunked=True))
    assert after == raw.index(b"\n\n") + 2
    assert is_failed_start(raw[:after], is_chunked=True) is False


def test_a_failure_after_the_first_tokens_is_known_while_nothing_was_passed_on() -> None:
    assert is_failed_start(chunk(event(0)) + chunk(FAILURE), is_chunked=True) is True
    assert is_failed_start(chunk(event(0)) + chunk(FAULT), is_chunked=True) is False


def test_an_event_without_an_end_is_held_back_up_to_a_limit() -> None:
    begun = b'data: {"error": {"message": "' + b"x" * HELD_BYTES_MAX
    assert is_failed_start(begun[:HELD_BYTES_MAX], is_chunked=False) is None
    assert is_failed_start(begun, is_chunked=False) is False
    token = begun.replace(b"error", b"choice")
    assert is_failed_start(token[:HELD_BYTES_MAX], is_chunked=False) is None
    assert is_failed_start(token, is_chunked=False) is False


async def three(bench):
    prefill = await bench.node("p0")
    one, two = await bench.node("d0"), await bench.node("d1")
    return prefill, one, two, await bench.router(prefill, one, two, policy="least-loaded")


def saying(*parts: bytes, ends: bool = True):
    async def handler(node, got) -> None:
        for part in parts:
            got.writer.write(part)
            await asyncio.sleep(0.005)
        if not ends:
            got.writer.transport.abort()

    return handler


RAW = chunk(FAILURE) + DONE
CUTS = [1, 3, 4, 5, 12, 20, 60, len(chunk(FAILURE)) - 3, len(chunk(FAILURE)) - 2]


@pytest.mark.parametrize("cut", CUTS)
async def test_a_failure_that_comes_in_two_reads_moves_the_request(bench, body, cut: int) -> None:
    prefill, one, two, server = await three(bench)
    one.on_post = saying(SSE_HEAD + RAW[:cut], RAW[cut:])
    answer = await bench.ask(server, body)
    assert (answer.complete, b"error" in answer.body) == (True, False)
    assert answer.body.count(event(0)) == 1, "no token twice"
    assert (len(prefill.posts), len(one.posts), len(two.posts)) == (2, 1, 1)
    assert server.shell.metrics.upstream_errors["d0", "http_500"] == 1


@pytest.mark.parametrize("ends", [True, False])
async def test_a_stream_that_ends_within_its_failure_moves_the_request(
    bench, body, ends: bool
) -> None:
    """Nothing of what was held back of it is left in the answer."""
    _, one, two, server = await three(bench)
    end = b"0\r\n\r\n" if ends else b""
    one.on_post = saying(SSE_HEAD, chunk(FAILURE[:-1]) + end, ends=ends)
    answer = await bench.ask(server, body)
    assert (answer.complete, b"error" in answer.body) == (True, False)
    assert len(two.posts) == 1


async def test_a_stream_that_breaks_off_within_its_first_event_is_moved(bench, body) -> None:
    _, one, two, server = await three(bench)
    one.on_post = saying(SSE_HEAD, chunk(event(0))[:20], ends=False)
    answer = await bench.ask(server, body)
    assert (answer.complete, b"error" in answer.body) == (True, False)
    assert answer.body.count(event(0)) == 1, "no token twice"
    assert len(two.posts) == 1


async def test_a_stream_that_ends_before_it_could_be_told_is_passed_on(bench, body) -> None:
    _, one, _, server = await three(bench)
    one.on_post = saying(SSE_HEAD, chunk(b"data: "), b"0\r\n\r\n")
    answer = await bench.ask(server, body)
    assert (answer.complete, answer.body) == (True, b"data: ")


async def test_a_token_in_pieces_is_passed_on_as_it_came(bench, body) -> None:
    _, one, _, server = await three(bench)
    parts = [chunk(event(0)[:5]), chunk(event(0)[5:]), DONE]
    one.on_post = saying(SSE_HEAD, *parts)
    answer = await bench.ask(server, body)
    assert (answer.complete, answer.raw) == (True, b"".join(parts))
