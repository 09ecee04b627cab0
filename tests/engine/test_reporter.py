"""Reports: what they say of a scheduler, and when they are made."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from builders import A100_8B
from fakescheduler import STATUSES, FakeRequest, FakeScheduler, Status
from spillway.clock import ManualClock
from spillway.core.controller import Controller
from spillway.core.errors import ConfigError
from spillway.core.latency import token_pairs
from spillway.core.types import ChunkMode, Role
from spillway.engine.plan import Planner, limits_of
from spillway.engine.reporter import Reporter
from spillway.engine.settings import EngineSettings
from spillway.engine.view import StepView, look
from spillway.wire.report import NodeReport, StepTaken, decode, encode, to_state


class Heard:
    """In place of a listener: keeps what it is given."""

    def __init__(self) -> None:
        self.reports: list[NodeReport] = []
        self.steps: list[StepTaken] = []

    def publish(self, report: NodeReport) -> None:
        self.reports.append(report)

    def note_step(self, step: StepTaken) -> None:
        self.steps.append(step)


def a_reporter(scheduler: FakeScheduler, **settings: Any) -> Reporter:
    return Reporter(scheduler, EngineSettings(**settings), Role.DECODE, ManualClock())


def heard(reporter: Reporter) -> Heard:
    listener = Heard()
    reporter.listener = listener  # type: ignore[assignment]
    return listener


def loaded() -> tuple[FakeScheduler, StepView]:
    scheduler = FakeScheduler()
    scheduler.decodes(12, 1000)
    scheduler.put(
        FakeRequest("b", 3000, computed_tokens=1000, status=Status.RUNNING),
        FakeRequest("q", 500),
        FakeRequest("u", 800, remote=True),
        FakeRequest("x", 800, computed_tokens=800, status=Status.REMOTE_KVS),
    )
    return scheduler, look(scheduler, STATUSES, {"d3": 0.04}, 0.06)


def a_planner(scheduler: FakeScheduler) -> Planner:
    settings = EngineSettings()
    limits = limits_of(settings, scheduler.max_num_scheduled_tokens)
    return Planner(Controller(A100_8B), settings, limits, hits_possible=False)


def test_a_report_says_what_the_scheduler_holds() -> None:
    scheduler, view = loaded()
    reporter, planner = a_reporter(scheduler, node_id="d7"), a_planner(scheduler)
    reporter.seen.note("r1", 41)
    reporter.note_step(StepTaken(9, 12, 12_000, 0, 0.0, 0.021, 0.02))
    report = reporter.make(view, 9, planner, "", 0)
    assert decode(encode(report)) == report
    state = to_state(report, 5.0, "r1")
    assert (state.node_id, state.step, state.dispatch_seen) == ("d7", 9, 41)
    assert (state.backlog_prompts, state.backlog_tokens) == (2, 2500)
    assert state.backlog_token_pairs == token_pairs(2000, 1000) + token_pairs(500, 0)
    assert (state.decode_seqs, state.tbt_s_min, state.over_budget) == (12, 0.04, False)
    assert (state.kv_used_tokens, state.kv_capacity_tokens) == (4000, 16_000)
    assert (report.backlog_tokens_running, report.pulling_seqs) == (2000, 2)
    assert (report.last_step_actual_s, report.last_step_predicted_s) == (0.021, 0.02)
    assert (report.chunk_mode, report.chunk_tokens_max) == (ChunkMode.ENGINE, 2048)
    assert report.chunk_tokens_now == planner.chunk_now_tokens(view) > 0


def test_a_node_that_only_reports_says_why_and_that_its_chunks_are_static() -> None:
    scheduler, view = loaded()
    report = a_reporter(scheduler).make(view, 9, None, "no profile", 3)
    assert (report.chunk_mode, report.chunk_tokens_max) == (ChunkMode.STATIC, 2048)
    assert (report.fault, report.errors, report.chunk_tokens_now) == ("no profile", 3, 0)


def test_decodes_that_exceed_their_target_alone_are_told() -> None:
    scheduler, _ = loaded()
    view = look(scheduler, STATUSES, {"d3": 0.013}, 0.06)
    assert a_reporter(scheduler).make(view, 1, a_planner(scheduler), "", 0).over_budget


def test_every_start_has_its_own_boot_id() -> None:
    boots = {a_reporter(FakeScheduler()).make(StepView(), 0, None, "", 0).boot_id for _ in "ab"}
    assert len(boots) == 2
    assert "" not in boots


def test_reports_come_no_closer_than_the_interval_but_for_the_last_one() -> None:
    scheduler, view = loaded()
    reporter = a_reporter(scheduler)
    assert not reporter.is_due(view, 1.0)  # nobody to tell
    listener = heard(reporter)
    assert reporter.is_due(view, 1.0)
    reporter.tell(view, 1, None, "", 0, 1.0)
    assert not reporter.is_due(view, 1.019)
    assert reporter.is_due(view, 1.021)
    assert reporter.is_due(StepView(), 1.001)  # falling idle: there is no later chance
    reporter.tell(StepView(), 1, None, "", 0, 1.001)
    assert [one.decode_seqs for one in listener.reports] == [12, 0]


def test_what_has_not_changed_is_not_told_again() -> None:
    scheduler, view = loaded()
    reporter = a_reporter(scheduler)
    listener = heard(reporter)
    for now_s in (1.0, 2.0, 3.0):
        reporter.tell(view, 7, None, "", 0, now_s)
    assert len(listener.reports) == 1
    reporter.tell(view, 8, None, "", 0, 4.0)
    assert [one.step for one in listener.reports] == [7, 8]


def test_each_data_parallel_rank_has_a_port_and_a_name_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    scheduler = FakeScheduler()
    scheduler.parallel_config.data_parallel_rank = 1
    reporter = a_reporter(scheduler, report_port=port - 1)
    try:
        assert reporter.whereabouts == f"reports on 127.0.0.1:{port}"
        assert reporter.make(StepView(), 0, None, "", 0).node_id == f"decode-{port}.1"
    finally:
        reporter.close()


def test_a_port_that_is_taken_is_the_operators_to_change() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConfigError, match=r"report_port \d+ on '127.0.0.1' cannot be had"),
    ):
        a_reporter(FakeScheduler(), report_port=taken.getsockname()[1])
