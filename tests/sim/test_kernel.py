"""The order of events."""

from __future__ import annotations

import pytest

from spillway.core.errors import InvariantViolation
from spillway.sim.kernel import Kernel


def test_events_run_by_time_then_rank_then_order_of_scheduling() -> None:
    kernel, seen = Kernel(), []
    kernel.at(2.0, seen.append, "late")
    kernel.at(1.0, seen.append, "low", rank=1)
    kernel.at(1.0, seen.append, "first")
    kernel.at(1.0, seen.append, "second")
    kernel.run()
    assert seen == ["first", "second", "low", "late"]
    assert (kernel.now_s, kernel.events, kernel.waiting) == (2.0, 4, 0)


def test_an_event_may_schedule_others_at_its_own_time() -> None:
    kernel, seen = Kernel(), []

    def spawn(name: str) -> None:
        seen.append((name, kernel.now_s))
        if name == "parent":
            kernel.at(kernel.now_s, spawn, "child")

    kernel.at(1.0, spawn, "parent")
    kernel.run()
    assert seen == [("parent", 1.0), ("child", 1.0)]


def test_a_run_stops_after_until_and_can_go_on() -> None:
    kernel, seen = Kernel(), []
    for time_s in (1.0, 2.0, 3.0):
        kernel.at(time_s, seen.append, time_s)
    kernel.run(until_s=2.0)
    assert (seen, kernel.waiting, kernel.now_s) == ([1.0, 2.0], 1, 2.0)
    kernel.run()
    assert seen == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("time_s", [0.5, float("nan")])
def test_the_past_and_nan_are_refused(time_s: float) -> None:
    kernel = Kernel()
    kernel.at(1.0, lambda _: kernel.at(time_s, print))
    with pytest.raises(InvariantViolation, match="INV-3"):
        kernel.run()


def test_a_run_without_end_is_stopped() -> None:
    kernel = Kernel(events_max=100)

    def again(_: None) -> None:
        kernel.at(kernel.now_s + 1, again)

    kernel.at(0.0, again)
    with pytest.raises(InvariantViolation, match="100 events and no end"):
        kernel.run()


def test_each_event_can_be_followed_by_a_check() -> None:
    kernel, seen = Kernel(), []
    kernel.at(1.0, seen.append, "event")
    kernel.run(after_event=lambda: seen.append("check"))
    assert seen == ["event", "check"]
