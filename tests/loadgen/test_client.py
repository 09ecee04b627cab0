"""One streamed request against a real socket, and every way it can go wrong."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec
import pytest
from aiohttp import web

from spillway.clock import Clock, MonotonicClock
from spillway.core.types import Slo
from spillway.loadgen.client import complete, completion_body, completion_headers, open_session
from spillway.loadgen.exchange import Exchange, TextCheck
from spillway.stats import GapHistogram
from spillway.wire.faketext import prompt_digest
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row

PROMPT = [5, 6, 7]


class ReadingClock(MonotonicClock):
    """Moves on by one second each time it is read, and says that it was."""

    def __init__(self) -> None:
        self.time_s = 0.0
        self.was_read = asyncio.Event()

    def now_s(self) -> float:
        self.time_s += 1.0
        self.was_read.set()
        return self.time_s


async def ask(
    base_url: str,
    *,
    output_tokens: int = 3,
    silence_s: float = 5.0,
    clock: Clock | None = None,
) -> RequestRecord:
    exchange = Exchange(
        "r1",
        Row(0.0, len(PROMPT), output_tokens),
        Slo(1.0, 0.05),
        GapHistogram(),
        TextCheck(prompt_digest(PROMPT)),
    )
    async with open_session(connect_s=1.0, silence_s=silence_s) as session:
        await complete(
            session,
            f"{base_url}/v1/completions",
            completion_body("m", PROMPT, output_tokens),
            completion_headers("r1", Slo(1.0, 0.05), {}),
            exchange,
            clock or MonotonicClock(),
        )
    return exchange.record(0.0)


async def test_a_whole_answer(serve: Any, answers: Any):
    record = await ask(await serve(answers))
    assert (record.outcome, record.error) == ("finished", "")
    assert (record.output_tokens, record.gaps) == (3, 2)
    assert (record.route, record.reason) == ("deflected", "faster_on_decode")
    assert record.ttft_s is not None
    assert record.finish_s is not None
    assert 0 < record.ttft_s <= record.finish_s - record.arrival_s


async def test_what_is_sent(serve: Any, answers: Any):
    seen: list[tuple[Any, Any]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((request.headers.copy(), await request.json()))
        return await answers(request)

    await ask(await serve(handler))
    ((headers, body),) = seen
    assert body == {
        "model": "m",
        "prompt": PROMPT,
        "max_tokens": 3,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert headers["x-request-id"] == "r1"
    assert (headers["x-slo-ttft-ms"], headers["x-slo-tbt-ms"]) == ("1000", "50")
    assert headers["content-type"] == "application/json"


async def test_each_read_has_its_own_time(serve: Any, stream: Any):
    clock = ReadingClock()

    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream.open(request)
        for indices in ((0,), (1, 2), (3,)):
            clock.was_read.clear()
            await answer.raw("".join(answer.token_text(index) for index in indices))
            await clock.was_read.wait()
        return await answer.end()

    record = await ask(await serve(handler), output_tokens=4, clock=clock)
    # Sent at 1 s; read at 2, 3 (two tokens at once) and 4 s.
    assert record.outcome == "finished"
    assert (record.ttft_s, record.gap_max_s) == (1.0, 1.0)
    assert (record.gaps, record.gap_mean_s) == (3, pytest.approx(2 / 3))
    assert record.gaps_late == 2


@pytest.mark.parametrize(
    ("status", "outcome"), [(503, "rejected"), (429, "rejected"), (400, "failed"), (500, "failed")]
)
async def test_a_refusal_is_recorded_with_its_text(serve: Any, status: int, outcome: str):
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(
            status=status, text="no room today", headers={"x-spillway-reason": "no_node"}
        )

    record = await ask(await serve(handler))
    assert (record.outcome, record.error) == (outcome, f"HTTP {status}: no room today")
    assert (record.ttft_s, record.reason) == (None, "no_node")


async def test_a_stream_that_breaks_has_failed_though_tokens_came(serve: Any, stream: Any):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream.open(request)
        await answer.tokens(0, 1)
        await asyncio.sleep(0.005)
        assert request.transport is not None
        request.transport.abort()
        return answer.response

    record = await ask(await serve(handler))
    assert record.outcome == "failed"
    assert "Client" in record.error  # the HTTP client's own word for it
    assert record.gaps == 1
    assert record.ttft_s is not None


async def test_a_stream_that_just_stops_has_failed(serve: Any, stream: Any):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream.open(request)
        await answer.tokens(0, 1, 2)
        return answer.response

    record = await ask(await serve(handler))
    assert (record.outcome, record.error) == ("failed", "the stream ended without [DONE]")


async def test_an_error_frame_fails_the_request(serve: Any, stream: Any):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream.open(request)
        await answer.tokens(0)
        await answer.event({"error": {"message": "decode node lost", "type": "upstream"}})
        return answer.response

    record = await ask(await serve(handler))
    assert (record.outcome, record.error) == ("failed", "error frame: decode node lost")


@pytest.mark.parametrize("indices", [(0, 2), (0, 1), (1, 0, 2), (0, 1, 2, 3)], ids=str)
async def test_lost_and_reordered_tokens_fail_the_request(
    serve: Any, stream: Any, indices: tuple[int, ...]
):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream.open(request)
        await answer.tokens(*indices)
        return await answer.end()

    record = await ask(await serve(handler))
    assert record.outcome == "failed"
    assert "token" in record.error


async def test_silence_is_not_waited_out(serve: Any, stream: Any):
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = await stream.open(request)
        await answer.tokens(0)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    record = await ask(await serve(handler), silence_s=0.03)
    assert record.outcome == "failed"
    assert "Timeout" in record.error


async def test_nobody_listening_is_a_failure():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        record = await ask(f"http://127.0.0.1:{free.getsockname()[1]}")
    assert record.outcome == "failed"
    assert record.error.startswith("ClientConnector")
    assert record.ttft_s is None


def test_targets_are_sent_in_milliseconds_beside_the_callers_headers():
    headers = completion_headers("r", Slo(0.25, 0.0125), {"authorization": "Bearer k"})
    assert headers["authorization"] == "Bearer k"
    assert (headers["x-slo-ttft-ms"], headers["x-slo-tbt-ms"]) == ("250", "12.5")


def test_a_text_prompt_is_sent_as_text():
    assert msgspec.json.decode(completion_body("m", "one two", 1))["prompt"] == "one two"
