"""Steering: the engine sees the plan during the call, and itself again after it."""

from __future__ import annotations

import pytest

from fakescheduler import FakeRequest, FakeScheduler, Status, decode
from spillway.engine.plan import StepPlan
from spillway.engine.steer import Steering
from spillway.engine.view import Prompt


def a_plan(admitted_prompts: int = 0, step_tokens: int = 100, each: int = 64) -> StepPlan:
    return StepPlan((), admitted_prompts, step_tokens, each, 0.05, False)


def prompts(*requests: FakeRequest) -> list[Prompt]:
    return [Prompt(one, one.num_computed_tokens, one.num_tokens) for one in requests]


def names(scheduler: FakeScheduler) -> list[str]:
    return [request.request_id for request in scheduler.waiting]


def test_limits_hold_for_one_call() -> None:
    scheduler = FakeScheduler()
    scheduler.scheduler_config.long_prefill_token_threshold = 7
    scheduler.adaptive_long_prefill_threshold = True
    steering = Steering(scheduler)
    steering.apply(a_plan(), [])
    assert scheduler.max_num_scheduled_tokens == 100
    assert scheduler.scheduler_config.long_prefill_token_threshold == 64
    assert scheduler.adaptive_long_prefill_threshold is False
    steering.restore()
    assert scheduler.max_num_scheduled_tokens == 2048
    assert scheduler.scheduler_config.long_prefill_token_threshold == 7
    assert scheduler.adaptive_long_prefill_threshold is True


def test_an_old_release_gets_no_attribute_that_it_does_not_have() -> None:
    scheduler = FakeScheduler()
    steering = Steering(scheduler)
    steering.apply(a_plan(), [])
    steering.restore()
    assert not hasattr(scheduler, "adaptive_long_prefill_threshold")


def test_decodes_come_first_and_keep_their_order() -> None:
    scheduler = FakeScheduler()
    chunk = FakeRequest("p", 900, computed_tokens=100, status=Status.RUNNING)
    scheduler.put(decode("a", 10), chunk, decode("b", 10), decode("c", 10))
    Steering(scheduler).apply(a_plan(), [])
    assert [one.request_id for one in scheduler.running] == ["a", "b", "c", "p"]


def test_admitted_prompts_stand_behind_remote_ones_and_the_rest_comes_back_in_order() -> None:
    scheduler = FakeScheduler()
    local = [FakeRequest(f"l{number}", 100) for number in range(4)]
    remote = [FakeRequest(f"r{number}", 100, remote=True) for number in range(2)]
    scheduler.put(local[0], remote[0], local[1], local[2], remote[1], local[3])
    steering = Steering(scheduler)
    steering.apply(a_plan(admitted_prompts=2), prompts(*local))
    assert names(scheduler) == ["r0", "r1", "l0", "l1"]
    scheduler.waiting.popleft()  # the engine takes one, and one more comes in
    scheduler.waiting.appendleft(FakeRequest("preempted", 5))
    steering.restore()
    assert names(scheduler) == ["preempted", "r1", "l0", "l1", "l2", "l3"]


def test_restoring_after_a_failure_half_way_loses_nobody_and_doubles_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = FakeScheduler()
    local = [FakeRequest(f"l{number}", 100) for number in range(3)]
    scheduler.put(*local)
    steering, add = Steering(scheduler), scheduler.waiting.add_request

    def fail_on_second(request: FakeRequest) -> None:
        if request.request_id == "l1":
            raise RuntimeError("broken queue")
        add(request)

    monkeypatch.setattr(scheduler.waiting, "add_request", fail_on_second)
    with pytest.raises(RuntimeError, match="broken queue"):
        steering.apply(a_plan(admitted_prompts=2), prompts(*local))
    monkeypatch.undo()
    steering.restore()
    assert names(scheduler) == ["l0", "l1", "l2"]
    assert scheduler.max_num_scheduled_tokens == 2048
