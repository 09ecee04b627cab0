"""Clocks: never early, always a turn for others, and a manual one that tests can trust."""

from __future__ import annotations

import asyncio

import pytest

from spillway.clock import ManualClock, MonotonicClock


async def test_monotonic_clock_never_wakes_early():
    clock = MonotonicClock()
    for wait_s in (0.0, 0.0004, 0.003):
        due_s = clock.now_s() + wait_s
        await clock.sleep_until(due_s)
        assert clock.now_s() >= due_s


async def test_sleeping_until_the_past_still_gives_others_a_turn():
    for clock in (MonotonicClock(), ManualClock(5.0)):
        turns: list[str] = []
        other = asyncio.create_task(_note(turns, "other"))
        await clock.sleep_until(clock.now_s() - 1.0)
        turns.append("sleeper")
        await other
        assert turns == ["other", "sleeper"]


async def _note(turns: list[str], name: str) -> None:
    turns.append(name)


async def test_manual_clock_wakes_in_order_of_due_time_and_not_before():
    clock = ManualClock(10.0)
    woken: list[float] = []

    async def sleeper(due_s: float) -> None:
        await clock.sleep_until(due_s)
        woken.append(due_s)

    tasks = [asyncio.create_task(sleeper(due_s)) for due_s in (13.0, 11.0, 12.0)]
    await asyncio.sleep(0)
    assert clock.next_due_s() == 11.0
    clock.advance(0.999)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(1.5)
    await asyncio.sleep(0)
    assert woken == [11.0, 12.0]
    assert clock.now_s() == pytest.approx(12.499)
    clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert woken == [11.0, 12.0, 13.0]
    assert clock.next_due_s() is None


async def test_a_cancelled_sleeper_is_forgotten():
    clock = ManualClock()
    gone = asyncio.create_task(clock.sleep_until(1.0))
    stays = asyncio.create_task(clock.sleep_until(2.0))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    assert clock.next_due_s() == 2.0
    clock.advance(2.0)
    await stays
    assert gone.cancelled()


@pytest.mark.parametrize("delta_s", [-1e-9, float("nan"), float("inf")])
def test_manual_clock_refuses_to_go_back(delta_s: float):
    clock = ManualClock(3.0)
    with pytest.raises(ValueError, match="cannot advance"):
        clock.advance(delta_s)
    assert clock.now_s() == 3.0
