"""The node keeps its own exact times, however late the timers are."""

import asyncio

import pytest

from builders import make_profile, make_spec
from spillway.clock import ManualClock, MonotonicClock
from spillway.core.errors import InvariantViolation, NodeError
from spillway.core.latency import step_s
from spillway.fakeengine.metrics import EngineMetrics
from spillway.fakeengine.pace import TIMER_EARLY_S, PacedNode
from spillway.sim.node import SimNode
from spillway.sim.residents import Job

FAST = make_profile(
    step_base_s=1e-3, token_hinges=(0,), token_s=(0.0,), kv_token_s=0.0, token_pair_s=0.0
)


class Ears:
    """Stands in for a flight: notes what it is told."""

    def __init__(self) -> None:
        self.tokens_at_s: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self.failed = ""

    def add_tokens(self, tokens: int, at_s: float) -> None:
        self.tokens_at_s += [at_s] * tokens

    def finish(self) -> None:
        self.done.set_result(None)

    def fail(self, reason: str) -> None:
        self.failed = reason


def make_paced(clock, **changes):
    node = SimNode(make_spec(profile=FAST, **changes), per_token=True)
    reports = []
    return PacedNode(node, clock, EngineMetrics("m"), lambda: reports.append(1)), node, reports


async def test_late_timers_do_not_add_up():
    paced, node, _ = make_paced(MonotonicClock())
    ears = Ears()
    resident = paced.submit(ears, Job("r1", 10, output_tokens=20), node.submit_local)
    await asyncio.wait_for(ears.done, 2.0)
    gaps = [b - a for a, b in zip(ears.tokens_at_s, ears.tokens_at_s[1:], strict=False)]
    assert len(ears.tokens_at_s) == 20
    assert gaps == pytest.approx([step_s(FAST, 1, 10)] * 19)
    assert ears.tokens_at_s[0] == resident.first_token_s
    assert paced.flights == 0


async def test_the_node_runs_ahead_of_the_clock_by_less_than_a_timers_rounding():
    clock = ManualClock(100.0)
    paced, node, _ = make_paced(clock)
    paced.submit(Ears(), Job("r1", 10, output_tokens=500), node.submit_local)
    for _ in range(50):
        clock.advance(0.0001)
        paced.release_kv("nothing")
    assert clock.now_s() <= paced.now_s() <= clock.now_s() + TIMER_EARLY_S
    assert node.steps <= 6  # 5 ms of 1 ms steps, and the one that may be early
    paced.stop("test over")


async def test_an_aborted_request_hears_nothing_more():
    clock = ManualClock(100.0)
    paced, node, reports = make_paced(clock)
    ears = Ears()
    paced.submit(ears, Job("r1", 10, output_tokens=50), node.submit_local)
    clock.advance(0.0052)
    paced.abort("r1")
    heard = len(ears.tokens_at_s)
    assert heard == 5
    clock.advance(0.01)
    paced.abort("unknown")
    assert len(ears.tokens_at_s) == heard
    assert node.kv.used_tokens == 0
    assert paced.flights == 0
    assert len(reports) == 3
    paced.stop("test over")


async def test_a_held_prefill_answers_one_token_and_is_released():
    clock = ManualClock(100.0)
    paced, node, _ = make_paced(clock)
    ears = Ears()
    paced.submit(ears, Job("r1", 10), node.submit_prefill)
    clock.advance(0.002)
    paced.release_kv("other")
    assert len(ears.tokens_at_s) == 1
    assert ears.done.done()
    assert node.kv.used_tokens == 10
    paced.release_kv("r1")
    assert node.kv.used_tokens == 0
    paced.stop("test over")


async def test_preemptions_are_counted():
    paced, node, _ = make_paced(MonotonicClock(), kv_capacity_tokens=64)
    both = [Ears(), Ears()]
    for number, ears in enumerate(both):
        paced.submit(ears, Job(f"r{number}", 20, output_tokens=25), node.submit_local)
    await asyncio.wait_for(asyncio.gather(*(ears.done for ears in both)), 2.0)
    assert paced._metrics.preemptions == node.preemptions > 0
    assert [len(ears.tokens_at_s) for ears in both] == [25, 25]


async def test_a_broken_invariant_stops_the_node_and_fails_its_requests():
    paced, node, _ = make_paced(MonotonicClock())
    ears = Ears()
    paced.submit(ears, Job("r1", 10, output_tokens=50), node.submit_local)
    node.submit_local(Job("stranger", 10), paced.now_s())  # a request nobody here knows
    broken = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().set_exception_handler(lambda _, what: broken.set_result(what))
    what = await asyncio.wait_for(broken, 2.0)
    assert isinstance(what["exception"], InvariantViolation)
    assert "stranger" in ears.failed
    assert paced.stopped
    with pytest.raises(NodeError, match="stopped"):
        paced.submit(Ears(), Job("r2", 10), node.submit_local)


async def test_stop_fails_what_is_under_way():
    paced, node, reports = make_paced(MonotonicClock())
    ears = Ears()
    paced.submit(ears, Job("r1", 10, output_tokens=50), node.submit_local)
    paced.stop("over")
    assert ears.failed == "over"
    told = len(reports)
    await asyncio.sleep(0.005)
    assert len(reports) == told
