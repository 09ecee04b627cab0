"""Driving real fake engines over loopback: what is measured is what the engine did."""

from __future__ import annotations

import pytest

from calibsamples import make_limits
from spillway.calib.client import EngineClient
from spillway.calib.probes import Ladder, Rung
from spillway.calib.runner import Drive, Measured, measure
from spillway.calib.samples import EngineLimits, Sample
from spillway.calib.steps import ReportedSteps
from spillway.clock import MonotonicClock
from spillway.core.errors import NodeError
from spillway.core.latency import LatencyProfile, tokens_s
from spillway.workload.seeds import stream

LIMITS = make_limits(
    context_tokens_max=4096, kv_capacity_tokens=60_000, streams_max=4, chunk_tokens_max=512
)


def true_s(profile: LatencyProfile, sample: Sample) -> float:
    return (
        profile.step_base_s
        + tokens_s(profile, sample.decode_seqs + sample.prefill_tokens)
        + profile.kv_token_s * sample.kv_tokens
        + profile.token_pair_s * sample.prefill_token_pairs
    )


def client_of(url: str) -> EngineClient:
    return EngineClient(url, MonotonicClock(), stream(1, "test.prompts"))


async def measured(url: str, limits: EngineLimits = LIMITS, **changes: object) -> Measured:
    options: dict = {
        "from_reports": True,
        "quick": True,
        "time_limit_s": 60.0,
        "rng": stream(1, "test"),
    }
    async with client_of(url) as client:
        await client.facts(None)
        return await measure(client, limits, MonotonicClock(), **(options | changes))


@pytest.mark.slow
async def test_reported_steps_are_exactly_what_the_engine_did(start, true_profile) -> None:
    engine = await start()
    heard: list[tuple[int, int, str]] = []
    result = await measured(engine.url, progress=lambda *now: heard.append(now))
    assert result.rungs_done == result.rungs_planned
    assert result.notes == ()
    for sample in result.samples:
        assert sample.step_s == pytest.approx(true_s(true_profile, sample))
    batches = {one.decode_seqs for one in result.samples if not one.prefill_tokens}
    assert {1, 4} <= batches
    assert {one.decode_seqs for one in result.samples if one.prefill_tokens} >= {0, 1, 4}
    assert len({one.prefill_tokens for one in result.samples}) > 8
    assert heard[0] == (0, result.rungs_planned, "warming up")
    assert [done for done, _, _ in heard] == [*range(result.rungs_planned + 1)]
    assert not engine.backend.pace.flights  # nothing is left running


@pytest.mark.slow
async def test_token_gaps_of_a_stock_engine_give_the_same_kinds_of_step(start) -> None:
    engine = await start(stock=True, time_scale=0.2)  # slow enough for a clock of milliseconds
    limits = make_limits(
        context_tokens_max=1024, kv_capacity_tokens=60_000, streams_max=2, chunk_tokens_max=512
    )
    result = await measured(engine.url, limits, from_reports=False)
    assert result.rungs_done == result.rungs_planned
    assert {one.decode_seqs for one in result.samples} == {1, 2}
    assert {one.prefill_tokens for one in result.samples} >= {0, 512}
    # What is known of a step is exact; how long it took is what a busy machine let us see.
    chunked = [one for one in result.samples if one.prefill_tokens == 512]
    assert {one.prefill_token_pairs for one in chunked} <= {512 * 256.5, 512 * (512 + 256.5)}
    for sample in result.samples:
        context = sample.kv_tokens / sample.decode_seqs
        assert 64 <= context <= 1024


@pytest.mark.slow
async def test_a_plan_is_cut_short_when_the_time_is_up(start) -> None:
    engine = await start()
    result = await measured(engine.url, time_limit_s=0.05)
    assert result.rungs_done < result.rungs_planned
    assert "--time-limit-s" in result.notes[0]
    assert not engine.backend.pace.flights


async def climb(url: str, ladder: Ladder, limits: EngineLimits = LIMITS) -> tuple[Drive, list]:
    clock = MonotonicClock()
    async with client_of(url) as client:
        await client.facts(None)
        async with ReportedSteps(clock, stream(1, "test")).listening(client) as steps:
            steps.recording = True
            drive = Drive(client, limits, steps, clock, clock.now_s() + 60.0)
            await drive.climb(ladder, lambda rung: None)
            return drive, steps.samples


@pytest.mark.slow
async def test_streams_that_end_are_opened_anew(start) -> None:
    engine = await start()
    ladder = Ladder(100, 20, (Rung(2, (16, 24, 40, 48)),))  # twenty tokens do not last for long
    _, samples = await climb(engine.url, ladder)
    assert {16, 24, 40, 48} <= {one.prefill_tokens for one in samples}
    assert engine.backend.metrics.finished["length"] > 4 + 2


@pytest.mark.slow
async def test_an_engine_with_fewer_places_than_asked_for_is_found_out(start) -> None:
    engine = await start(seqs_max=3, time_scale=0.5)
    ladder = Ladder(100, 3900, (Rung(2, ()), Rung(8, ()), Rung(16, ())))
    limits = make_limits(
        context_tokens_max=4096, kv_capacity_tokens=60_000, streams_max=16, chunk_tokens_max=512
    )
    drive, samples = await climb(engine.url, ladder, limits)
    assert max(one.decode_seqs for one in samples) == 3
    assert len(drive.notes) == 1
    assert "no more than 3 streams" in drive.notes[0]


async def test_an_engine_that_refuses_is_told_of_with_its_own_words(start) -> None:
    engine = await start()
    with pytest.raises(NodeError, match="maximum context length"):
        await climb(engine.url, Ladder(100, 5000, (Rung(1, ()),)))
    with pytest.raises(NodeError, match=r"a prompt of 9999 tokens failed: HTTP 400"):
        await climb(engine.url, Ladder(100, 100, (Rung(0, (9999,)),)))


async def test_an_engine_that_dies_is_an_error(start) -> None:
    engine = await start()
    async with client_of(engine.url) as client:
        await client.facts(None)
        async with ReportedSteps(MonotonicClock(), stream(1, "test")).listening(client) as steps:
            await engine.kill()
            with pytest.raises(NodeError, match="reports"):
                await steps.idle()
