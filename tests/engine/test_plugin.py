"""The plug-in around a stand-in scheduler: it steers, measures, and never fails aloud."""

from __future__ import annotations

import logging
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from fakescheduler import STATUSES, FakeRequest, FakeScheduler, Status
from spillway.clock import ManualClock
from spillway.core.chunks import next_chunk_tokens
from spillway.core.errors import ConfigError
from spillway.core.latency import token_pairs
from spillway.core.types import Role
from spillway.engine.plugin import ERRORS_MAX, Plugin
from spillway.engine.settings import EngineSettings
from spillway.wire.kvparams import HeldKv
from spillway.wire.profile import load_profile
from spillway.wire.report import NodeReport, StepTaken

PROFILE = "llama-3.1-8b-a100"
STEP_S = 0.02


class Engine:
    """A scheduler and its plug-in, stepped as an engine core does. steps: what was noted."""

    def __init__(self, scheduler: FakeScheduler | None = None, **settings: Any) -> None:
        self.scheduler = scheduler or FakeScheduler()
        self.clock = ManualClock(100.0)
        fields = {"profile": PROFILE, "learning": False} | settings
        self.plugin = Plugin(
            self.scheduler,
            EngineSettings(**fields),
            STATUSES,
            clock=self.clock,
            cpu_now_s=lambda: self.clock.now_s() / 2,
        )
        self.steps: list[StepTaken] = []
        self.plugin.reporter.note_step = self.steps.append  # type: ignore[method-assign]

    def add(self, *args: Any, **kwargs: Any) -> FakeRequest:
        request = FakeRequest(*args, **kwargs)
        self.scheduler.add_request(request)
        self.plugin.added(request)
        return request

    def schedule(self) -> Any:
        steering = self.plugin.before_schedule()
        try:
            output = self.scheduler.schedule()
        finally:
            self.plugin.restore(steering)
        self.plugin.after_schedule(output)
        return output

    def update(self, output: Any) -> None:
        self.scheduler.update_from_output(output)
        self.plugin.after_update(output)

    def step(self, step_s: float = STEP_S) -> dict[str, int]:
        output = self.schedule()
        self.clock.advance(step_s)
        self.update(output)
        return dict(output.num_scheduled_tokens)


def test_a_local_prompt_beside_streams_is_sized_step_by_step() -> None:
    engine = Engine()
    engine.scheduler.decodes(16, 1000)
    engine.add("p", 4000)
    profile, kv_tokens, context = load_profile(PROFILE), 16_000, 0
    while context < 4000:
        allowed = next_chunk_tokens(
            profile, 16, kv_tokens, context, 4000 - context, 0.054, 2032, 64
        )
        taken = engine.step()
        assert taken["p"] == allowed
        assert sum(taken.values()) == 16 + allowed
        context += allowed
        kv_tokens += 16
    assert len(engine.steps) > 3
    assert not engine.plugin.errors


def test_a_target_in_the_request_tightens_every_step_while_its_stream_runs() -> None:
    loose, tight = Engine(), Engine()
    for engine, order in ((loose, "r1:1:60"), (tight, "r1:1:30")):
        engine.scheduler.decodes(8, 1000)
        stream = engine.add("s", 10, order=order)
        engine.step()
        assert stream.status is Status.RUNNING
        engine.add("p", 4000)
    assert 0 < tight.step()["p"] < loose.step()["p"]


def test_steps_without_local_prompts_are_left_alone() -> None:
    engine = Engine()
    engine.scheduler.decodes(4, 100)
    engine.add("r", 500, remote=True)
    engine.plugin.before_schedule()
    assert engine.plugin.plan is None
    assert engine.scheduler.max_num_scheduled_tokens == 2048
    assert engine.plugin.before_schedule() is None


def test_a_prefill_node_only_reports() -> None:
    engine = Engine(role=Role.PREFILL)
    engine.scheduler.decodes(4, 100)
    engine.add("p", 4000)
    assert engine.step()["p"] == 2044
    assert not engine.plugin.acting
    assert not engine.plugin.fault
    assert engine.steps[0].prefill_tokens == 2044


def test_without_a_profile_a_decode_node_only_reports_and_says_so() -> None:
    engine = Engine(profile="")
    engine.scheduler.decodes(4, 100)
    engine.add("p", 4000)
    assert engine.step()["p"] == 2044
    assert engine.plugin.fault == "no profile"


def test_an_engine_that_lacks_what_is_touched_is_left_alone_and_says_so() -> None:
    scheduler = FakeScheduler()
    del scheduler.finished_recving_kv_req_ids
    engine = Engine(scheduler)
    assert engine.plugin.fault == "this vLLM lacks Scheduler.finished_recving_kv_req_ids"
    assert not engine.plugin.acting


def test_requests_of_another_shape_switch_it_off() -> None:
    engine = Engine()
    request = FakeRequest("p", 10)
    del request.num_output_placeholders
    engine.plugin.added(request)
    assert "Request.num_output_placeholders" in engine.plugin.fault
    assert not engine.plugin.acting


def test_a_mistake_of_the_operator_stops_the_engine_at_once() -> None:
    with pytest.raises(ConfigError, match="profile 'llama-9'"):
        Engine(profile="llama-9")
    scheduler = FakeScheduler()
    scheduler.vllm_config.kv_transfer_config.kv_role = "kv_both"
    with pytest.raises(ConfigError, match="role is missing and kv_role is 'kv_both'"):
        Engine(scheduler)


def test_a_bug_in_planning_leaves_the_step_to_the_engine_and_the_plug_in_to_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine()
    engine.scheduler.decodes(4, 100)
    engine.add("p", 4000)
    assert engine.plugin.planner is not None

    def broken(*args: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(engine.plugin.planner, "plan", broken)
    with caplog.at_level(logging.ERROR, "vllm.spillway"):
        assert engine.step()["p"] == 2044  # as stock
    assert engine.plugin.fault == "ZeroDivisionError: a bug"
    assert "only reports from now on" in caplog.text
    engine.step()
    assert engine.plugin.errors == 1  # it is not tried again
    assert engine.scheduler.max_num_scheduled_tokens == 2048


def test_a_bug_while_steering_puts_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.scheduler.decodes(4, 100)
    first, second = engine.add("p", 4000), engine.add("q", 10)
    monkeypatch.setattr(
        engine.scheduler.waiting,
        "remove_requests",
        lambda requests: (_ for _ in ()).throw(RuntimeError("no such method")),
    )
    assert engine.step()["p"] == 2044
    assert list(engine.scheduler.waiting) == [second]
    assert first in engine.scheduler.running
    assert engine.scheduler.scheduler_config.long_prefill_token_threshold == 0
    assert engine.plugin.errors == 1


def test_after_a_few_errors_it_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    engine.scheduler.decodes(2, 100)
    monkeypatch.setattr(engine.scheduler, "requests", None)
    for _ in range(2 * ERRORS_MAX):
        output = engine.schedule()
        engine.plugin.after_update(output)
    assert engine.plugin.errors == ERRORS_MAX


def test_a_step_is_measured_from_the_last_token_of_waiting_streams() -> None:
    engine = Engine()
    engine.scheduler.decodes(4, 1000)
    engine.step(0.02)
    engine.clock.advance(0.003)  # between two steps: the streams wait for that, too
    engine.step(0.02)
    assert [step.actual_s for step in engine.steps] == [pytest.approx(0.02), pytest.approx(0.023)]
    assert [step.step for step in engine.steps] == [1, 2]
    assert engine.steps[1].cpu_s == pytest.approx(0.01)
    assert (engine.steps[1].decode_seqs, engine.steps[1].kv_tokens) == (4, 4004)


def test_an_idle_engine_waits_for_nobody() -> None:
    engine = Engine()
    engine.add("p", 100)
    engine.step(0.02)
    output = engine.schedule()
    engine.scheduler.running.clear()  # its only stream ends with this step
    engine.scheduler.requests.clear()
    engine.plugin.after_update(output)
    engine.clock.advance(5.0)
    engine.add("q", 50)
    engine.step(0.02)
    assert engine.steps[-1].actual_s == pytest.approx(0.02)
    assert engine.steps[-1].prefill_token_pairs == token_pairs(50, 0)


def test_an_engine_that_falls_idle_says_what_it_freed() -> None:
    """It schedules nothing more, so no later report would say so."""
    engine = Engine()
    told: list[NodeReport] = []
    engine.plugin.reporter.listener = SimpleNamespace(  # type: ignore[assignment]
        publish=told.append, note_step=lambda step: None
    )
    engine.scheduler.decodes(2, 100)
    output = engine.schedule()
    assert (told[-1].decode_seqs, told[-1].kv_used_tokens > 0) == (2, True)
    engine.update(output)
    assert len(told) == 1  # others still run: the next step's report is soon enough
    output = engine.schedule()
    engine.scheduler.requests.clear()
    engine.scheduler.running.clear()
    engine.scheduler.kv_cache_manager.usage = 0.0
    engine.plugin.after_update(output)
    assert (told[-1].decode_seqs, told[-1].kv_used_tokens) == (0, 0)


def test_with_two_batches_in_flight_each_result_meets_its_own_step() -> None:
    engine = Engine()
    engine.scheduler.decodes(4, 1000)
    first = engine.schedule()
    for request in engine.scheduler.running:
        request.num_output_placeholders = 1
        request.num_tokens += 1
    second = engine.schedule()
    engine.clock.advance(0.02)
    engine.update(first)
    engine.clock.advance(0.03)
    engine.update(second)
    assert [step.step for step in engine.steps] == [1, 2]
    assert [step.actual_s for step in engine.steps] == [pytest.approx(0.02), pytest.approx(0.03)]


def test_results_that_never_come_are_bounded_and_counted() -> None:
    engine = Engine()
    engine.scheduler.decodes(2, 100)
    outputs = []
    for _ in range(20):
        outputs.append(engine.schedule())  # kept, so that no two have the same identity
        for request in engine.scheduler.running:
            request.num_tokens += 1
    assert engine.plugin.reporter.dropped["step"] == 4


def test_a_step_that_starts_late_takes_less() -> None:
    on_time, late = Engine(), Engine()
    for engine, wait_s in ((on_time, 0.0), (late, 0.02)):
        engine.scheduler.decodes(8, 1000)
        engine.step()
        engine.clock.advance(wait_s)
        engine.add("p", 4000)
    assert 0 < late.step()["p"] < on_time.step()["p"]


def test_orders_are_noted_and_nonsense_is_counted() -> None:
    engine = Engine()
    engine.add("a", 10, order="r1:7:60")
    engine.add("b", 10, order="r1:5:")
    engine.add("c", 10, order="nonsense")
    engine.add("d", 10, order=["r1", 9])
    engine.add("e", 10)
    assert engine.plugin.reporter.seen.by_router() == {"r1": 7}
    assert engine.plugin.reporter.dropped["order"] == 2
    assert not engine.plugin.errors


def test_targets_of_requests_that_left_are_forgotten() -> None:
    engine = Engine()
    for number in range(600):
        engine.add(f"s{number}", 10, order=f"r1:{number}:60")
        engine.scheduler.requests.clear()
    assert len(engine.plugin._tbt_s_by_id) < 300


def test_kv_that_routers_give_up_loses_its_lease_before_the_next_step() -> None:
    class NixlPullConnectorScheduler:
        engine_id = "e"

        def __init__(self) -> None:
            self._reqs_need_send: dict[str, float] = {}

    scheduler, holder = FakeScheduler(), NixlPullConnectorScheduler()
    scheduler.connector = SimpleNamespace(connector_scheduler=holder)  # type: ignore[attr-defined]
    engine = Engine(scheduler, role=Role.PREFILL)
    told: list[NodeReport] = []
    listener = SimpleNamespace(orphans=deque(), publish=told.append)
    engine.plugin.reporter.listener = listener  # type: ignore[assignment]
    held = FakeRequest("held", 100, status=Status.FINISHED)
    held.kv_transfer_params = {"do_remote_decode": True}
    scheduler.requests["held"] = held
    listener.orphans += [HeldKv("e", "held"), HeldKv("e", "gone"), HeldKv("x", "held")]
    engine.step()
    assert list(holder._reqs_need_send) == ["held"]
    assert not listener.orphans
    assert (engine.plugin.errors, engine.plugin.fault) == (0, "")
    assert [report.releases for report in told] == [True]
