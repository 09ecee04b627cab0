"""What is kept of an engine's reports, what is missed, and when waiting ends."""

from __future__ import annotations

from random import Random

import pytest

from spillway.calib.client import SILENCE_S, TokenStream
from spillway.calib.steps import SHAPE_SAMPLES_MAX, ReportedSteps, tokens_more, until
from spillway.clock import ManualClock
from spillway.core.errors import NodeError
from spillway.core.types import Role
from spillway.wire.report import NodeReport, StepTaken


def a_report(*steps: StepTaken) -> NodeReport:
    return NodeReport(
        node_id="d0",
        role=Role.DECODE,
        seq=1,
        step=steps[-1].step if steps else 0,
        backlog_prompts=0,
        backlog_tokens=0,
        backlog_token_pairs=0.0,
        decode_seqs=0,
        kv_used_tokens=0,
        kv_capacity_tokens=1000,
        recent_steps=steps,
    )


@pytest.fixture
def steps() -> ReportedSteps:
    made = ReportedSteps(ManualClock(), Random(1))
    made.recording = True
    return made


def test_reported_steps_become_samples(steps: ReportedSteps) -> None:
    steps.take(a_report(StepTaken(1, 2, 300, 0, 0.0, 0.01), StepTaken(2, 2, 302, 9, 45.0, 0.02)))
    first, second = steps.samples
    assert (first.decode_seqs, first.kv_tokens, first.step_s) == (2, 300, 0.01)
    assert (second.prefill_tokens, second.prefill_token_pairs) == (9, 45.0)
    assert steps.steps_missed == 0


def test_processor_time_is_passed_on(steps: ReportedSteps) -> None:
    steps.take(a_report(StepTaken(1, 2, 300, 0, 0.0, 0.01, cpu_s=0.008)))
    assert steps.samples[0].cpu_s == 0.008


def test_steps_that_nobody_heard_of_are_counted(steps: ReportedSteps) -> None:
    steps.take(a_report(StepTaken(1, 2, 300, 0, 0.0, 0.01)))
    steps.take(a_report(StepTaken(5, 2, 308, 0, 0.0, 0.01)))
    assert steps.steps_missed == 3


def test_of_many_repeats_a_few_are_kept_from_all_over_the_time(steps: ReportedSteps) -> None:
    for number in range(100):
        steps.take(a_report(StepTaken(number, 1, 500, 0, 0.0, 0.01 * (number + 1))))
    assert len(steps.samples) == SHAPE_SAMPLES_MAX
    assert steps.steps_missed == 0
    kept = [one.step_s for one in steps.samples]
    assert max(kept) > 0.5  # not the first ones only
    assert min(kept) < 0.5


def test_what_teaches_nothing_is_left_out(steps: ReportedSteps) -> None:
    steps.take(a_report(StepTaken(1, 0, 0, 0, 0.0, 0.01), StepTaken(2, 1, 9, 0, 0.0, 0.0)))
    steps.recording = False
    steps.take(a_report(StepTaken(3, 1, 9, 0, 0.0, 0.01)))
    assert steps.samples == []


def test_an_impossible_step_is_the_engines_fault(steps: ReportedSteps) -> None:
    with pytest.raises(NodeError, match="impossible step"):
        steps.take(a_report(StepTaken(1, 1, 9, 0, 5.0, 0.01)))


class HastyClock(ManualClock):
    """Time that passes as soon as somebody waits."""

    async def sleep_until(self, due_s: float) -> None:
        self.advance(max(0.0, due_s - self.now_s()))


async def test_waiting_ends_with_what_was_waited_for_or_with_an_error() -> None:
    clock = HastyClock()
    await until(clock, lambda: clock.now_s() > 1.0, "time")
    with pytest.raises(NodeError, match="in vain for a miracle"):
        await until(clock, lambda: False, "a miracle")
    assert clock.now_s() == pytest.approx(1.0 + SILENCE_S, rel=0.01)


async def test_tokens_are_waited_for_unless_a_stream_ends() -> None:
    clock = HastyClock()
    streams = [TokenStream(1, 9, 0.0), TokenStream(1, 9, 0.0)]
    with pytest.raises(NodeError, match="tokens of the streams"):
        await tokens_more(clock, streams, 1)
    streams[1].ended = True
    await tokens_more(clock, streams, 1)
