"""The one pass over a scheduler: every kind of request lands where it belongs."""

from __future__ import annotations

from math import inf

from fakescheduler import STATUSES, FakeRequest, FakeScheduler, Status, decode
from spillway.core.latency import token_pairs
from spillway.engine.view import Prompt, StepView, look


def view_of(*requests: FakeRequest, targets: dict[str, float] | None = None) -> StepView:
    scheduler = FakeScheduler()
    scheduler.put(*requests)
    scheduler.finished_recving_kv_req_ids = {"arrived", "failed"}
    return look(scheduler, STATUSES, targets or {}, 0.06)


def test_an_idle_scheduler_is_an_empty_view() -> None:
    view = view_of()
    assert view.is_empty
    assert (view.decode_seqs, view.tbt_s_min, view.backlog()) == (0, inf, (0, 0, 0.0))


def test_running_requests_are_decodes_or_begun_prompts() -> None:
    begun = FakeRequest("b", 1000, computed_tokens=300, status=Status.RUNNING)
    view = view_of(decode("d0", 500), decode("d1", 700), begun)
    assert (view.decode_seqs, view.kv_tokens) == (2, 1200)
    assert view.begun == [Prompt(begun, 300, 700)]
    assert not view.is_empty


def test_waiting_requests_are_local_prompts_or_remote_ones() -> None:
    local = FakeRequest("l", 900)
    again = FakeRequest("p", 100, output_tokens=20, status=Status.PREEMPTED)
    structured = FakeRequest("g", 50, status=Status.GRAMMAR)
    remote = FakeRequest("r", 2000, remote=True)
    view = view_of(local, again, structured, remote)
    assert view.queued == [Prompt(local, 0, 900), Prompt(again, 0, 120), Prompt(structured, 0, 50)]
    assert view.unadmitted_seqs == 1
    assert view.backlog()[1] == 900 + 120 + 50


def test_remote_requests_pull_are_ready_or_recompute_what_was_lost() -> None:
    pulling = FakeRequest("r", 2000, computed_tokens=2000, status=Status.REMOTE_KVS)
    arrived = FakeRequest("arrived", 800, computed_tokens=800, status=Status.REMOTE_KVS)
    failed = FakeRequest("failed", 800, computed_tokens=256, status=Status.REMOTE_KVS)
    promoted = FakeRequest("w", 640, computed_tokens=639)
    view = view_of(pulling, arrived, failed, promoted)
    assert view.pulling_seqs == 1
    assert (view.ready_seqs, view.ready_kv_tokens) == (2, 800 + 639)
    assert view.begun == [Prompt(failed, 256, 544)]


def test_finished_requests_that_still_hold_kv_are_nobody() -> None:
    assert view_of(FakeRequest("f", 100, computed_tokens=100, status=Status.FINISHED)).is_empty


def test_the_strictest_target_is_that_of_a_running_stream() -> None:
    streams = (decode("d0", 500), decode("d1", 500))
    assert view_of(*streams).tbt_s_min == 0.06
    assert view_of(*streams, targets={"d0": 0.03}).tbt_s_min == 0.03
    assert view_of(*streams, targets={"d0": 0.2}).tbt_s_min == 0.06  # d1 has the default
    assert view_of(*streams, targets={"d0": 0.2, "d1": 0.1}).tbt_s_min == 0.1
    waiting = FakeRequest("w", 100)
    assert view_of(waiting, targets={"w": 0.01}).tbt_s_min == inf


def test_the_backlog_counts_what_is_left_with_its_context() -> None:
    begun = FakeRequest("b", 1000, computed_tokens=300, status=Status.RUNNING)
    view = view_of(begun, FakeRequest("l", 400))
    assert view.backlog() == (700, 1100, token_pairs(700, 300) + token_pairs(400, 0))
