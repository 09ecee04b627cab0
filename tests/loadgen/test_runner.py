"""The run: open loop, on schedule, one record for every request, whatever happens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from spillway.clock import MonotonicClock
from spillway.core.errors import ConfigError
from spillway.core.types import Slo
from spillway.loadgen.runner import LoadOptions, LoadResult, Progress, PromptKind, run_load
from spillway.wire.results import summarise
from spillway.workload.row import Row


def options(base_url: str, **changes: Any) -> LoadOptions:
    fields: dict[str, Any] = {
        "base_url": base_url,
        "model": "m",
        "slo": Slo(1.0, 0.06),
        "check_text": True,
        "drain_s": 5.0,
        "silence_s": 5.0,
    }
    return LoadOptions(**(fields | changes))


def rows(count: int, every_s: float = 0.001, output_tokens: int = 3) -> list[Row]:
    return [Row(index * every_s, 20 + index, output_tokens) for index in range(count)]


def outcomes(result: LoadResult) -> list[str]:
    return [record.outcome for record in result.records]


async def never(request: web.Request) -> web.StreamResponse:
    await request.read()
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


async def test_every_request_is_sent_measured_and_recorded_in_order(serve: Any, answers: Any):
    result = await run_load(rows(20), options(await serve(answers), run_id="t"))
    assert outcomes(result) == ["finished"] * 20
    assert [record.request_id for record in result.records] == [f"t-{k}" for k in range(20)]
    assert [record.prompt_tokens for record in result.records] == list(range(20, 40))
    assert result.gaps.count == sum(record.gaps for record in result.records) == 40
    assert (result.overflowed, result.unsent) == (0, 0)
    assert result.wall_s >= 0.019
    summary = summarise(policy="x", records=result.records, gaps=result.gaps, wall_s=result.wall_s)
    assert summary.requests.finished == 20
    assert summary.deflected_frac == 1.0


async def test_the_loop_is_open(serve: Any, answers: Any):
    """The server answers nobody until all have asked: a client that waits would never end."""
    asked = 0
    everybody = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        await request.read()
        asked += 1
        if asked == 30:
            everybody.set()
        await everybody.wait()
        return await answers(request)

    result = await run_load(rows(30), options(await serve(handler)))
    assert asked == 30
    assert outcomes(result) == ["finished"] * 30


async def test_requests_are_not_sent_before_they_are_due(serve: Any, answers: Any):
    result = await run_load(rows(5, every_s=0.008), options(await serve(answers)))
    for index, record in enumerate(result.records):
        assert record.arrival_s >= index * 0.008
    assert 0 <= result.lateness.p50_s <= result.lateness.p99_s <= result.lateness.max_s


class LateClock(MonotonicClock):
    """Wakes 10 ms late, as a busy machine does."""

    async def sleep_until(self, due_s: float) -> None:
        await super().sleep_until(due_s + 0.01)


async def test_the_clients_own_lateness_is_reported(serve: Any, answers: Any):
    result = await run_load(rows(5), options(await serve(answers)), clock=LateClock())
    assert result.lateness.p50_s >= 0.01
    assert outcomes(result) == ["finished"] * 5


async def test_text_prompts_are_checked_too(serve: Any, answers: Any):
    seen: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        seen.append((await request.json())["prompt"])
        return await answers(request)

    result = await run_load(rows(2), options(await serve(handler), prompt_kind=PromptKind.TEXT))
    assert outcomes(result) == ["finished"] * 2
    assert sorted(len(prompt.split()) for prompt in seen) == [20, 21]


async def test_each_class_has_its_own_target(serve: Any, answers: Any):
    targets: set[tuple[str, str]] = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        targets.add((request.headers["x-slo-ttft-ms"], request.headers["authorization"]))
        return await answers(request)

    batch = Row(0.0, 10, 2, "batch")
    chosen = options(
        await serve(handler),
        slo_by_class={"batch": Slo(9.0, 0.5)},
        headers={"authorization": "Bearer k"},
    )
    result = await run_load([*rows(1), batch], chosen)
    assert targets == {("1000", "Bearer k"), ("9000", "Bearer k")}
    assert sorted(record.slo_ttft_s for record in result.records) == [1.0, 9.0]


async def test_what_has_no_room_in_flight_is_counted_and_recorded(serve: Any):
    result = await run_load(rows(5), options(await serve(never), in_flight_max=2, drain_s=0.03))
    assert result.overflowed == 3
    errors = [record.error for record in result.records]
    assert outcomes(result) == ["failed"] * 5
    assert sum(error == "not sent: 2 requests in flight already" for error in errors) == 3
    assert sum(error.startswith("not finished 0.03 s after") for error in errors) == 2


class ImpatientClock(MonotonicClock):
    """Reaches the drain's deadline as soon as `hurry` is set."""

    def __init__(self, hurry: asyncio.Event) -> None:
        self.hurry = hurry

    async def sleep_until(self, due_s: float) -> None:
        if due_s < self.now_s() + 1.0:
            await super().sleep_until(due_s)
            return
        await self.hurry.wait()
        await asyncio.sleep(0.02)  # client and server share one loop: time to read what was sent


async def test_patience_ends_and_what_came_by_then_is_kept(serve: Any, stream: Any):
    answered, hurry = 0, asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal answered
        answer = await stream.open(request)
        await answer.tokens(0, 1)
        answered += 1
        if answered == 3:
            hurry.set()
        return await never(request)

    result = await run_load(rows(3), options(await serve(handler)), clock=ImpatientClock(hurry))
    assert outcomes(result) == ["failed"] * 3
    assert all(record.ttft_s is not None and record.gaps == 1 for record in result.records)
    assert {record.error for record in result.records} == {"not finished 5 s after the last send"}


async def test_one_bad_answer_spoils_no_other(serve: Any, answers: Any):
    asked = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return await answers(request) if asked != 2 else web.Response(status=500)

    result = await run_load(rows(6, every_s=0.004), options(await serve(handler)))
    assert sorted(outcomes(result)) == ["failed"] + ["finished"] * 5


async def test_stopping_cancels_what_is_open_and_reports_what_is_unsent(serve: Any):
    stop = asyncio.Event()

    def progress(now: Progress) -> None:
        if now.sent == 3:
            stop.set()

    plan = [*rows(3), Row(60.0, 10, 2), Row(61.0, 10, 2)]
    result = await run_load(plan, options(await serve(never)), progress=progress, stop=stop)
    assert outcomes(result) == ["cancelled"] * 3
    assert {record.error for record in result.records} == {"the run was stopped"}
    assert (result.unsent, result.overflowed) == (2, 0)


async def test_stopping_while_draining_is_not_the_servers_fault(serve: Any):
    stop = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        stop.set()
        return await never(request)

    result = await run_load(rows(1), options(await serve(handler)), stop=stop)
    assert outcomes(result) == ["cancelled"]


async def test_cancelling_the_run_hangs_up_on_the_server(serve: Any):
    arrived, hung_up = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        arrived.set()
        try:
            return await never(request)
        finally:
            hung_up.set()

    run = asyncio.create_task(run_load(rows(1), options(await serve(handler))))
    await arrived.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    async with asyncio.timeout(2.0):
        await hung_up.wait()


async def test_progress_never_loses_a_request(serve: Any, answers: Any):
    seen: list[Progress] = []
    await run_load(rows(8), options(await serve(answers)), progress=seen.append)
    assert all(now.in_flight + now.ended == now.sent <= now.planned == 8 for now in seen)
    assert (seen[-1].ended, seen[-1].in_flight, seen[-1].failed) == (8, 0, 0)
    assert [now.ended for now in seen] == sorted(now.ended for now in seen)


async def test_an_error_of_our_own_is_raised_and_not_recorded(
    serve: Any, answers: Any, monkeypatch: pytest.MonkeyPatch
):
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("a mistake in the client")

    monkeypatch.setattr("spillway.loadgen.runner.complete", broken)
    with pytest.raises(ZeroDivisionError):
        await run_load(rows(1), options(await serve(answers)))


async def test_an_empty_plan_is_an_empty_run():
    result = await run_load([], options("http://127.0.0.1:1"))
    assert (result.records, result.gaps.count, result.unsent) == ([], 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "127.0.0.1:8000"},
        {"in_flight_max": 0},
        {"drain_s": 0.0},
        {"silence_s": float("inf")},
        {"connect_s": float("nan")},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any]):
    with pytest.raises(ConfigError, match=next(iter(changes)).removeprefix("base_")):
        options(**({"base_url": "http://h"} | changes))
