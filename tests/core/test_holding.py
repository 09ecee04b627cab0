"""Late binding: who is held, in which order they go, when they are looked at, and the bounds."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request, make_spec, make_state
from fleets import decode_node, prefill_node
from harness import AlwaysDeflect, Harness
from spillway.core.decide import Reason, Route
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import ConfigError
from spillway.core.events import (
    Action,
    AnswerError,
    ClientLeft,
    LegFailed,
    NodeLost,
    NodeReported,
    PrefillFinished,
    RequestArrived,
    SetTimer,
    StartPrefill,
    TimerFired,
)
from spillway.core.headroom import Headroom
from spillway.core.holding import REVIEW_S_MAX, HoldLine, Planned, Tracked
from spillway.core.invariants import check_dispatcher
from spillway.core.lifecycle import State
from spillway.core.policies.sangam import Sangam
from spillway.core.types import Role

LONG = 8192


def flooded(prompts: int = 12, policy: Headroom | None = None) -> Harness:
    """Return one prefill and one decode node under more long prompts than they take at once."""
    run = Harness(policy or Headroom(), prefill=1, decode=1)
    for at in range(prompts):
        run(RequestArrived(make_request(f"r{at}", prompt_tokens=LONG)))
    return run


def started(orders: list[Action]) -> list[str]:
    return [order.request_id for order in orders if isinstance(order, StartPrefill)]


def held(run: Harness) -> list[str]:
    return [one.request.request_id for one in run.dispatcher._held]


def test_who_would_queue_is_held_and_sent_when_the_node_is_due() -> None:
    run = flooded()
    waiting = run.count(State.HELD)
    assert 0 < waiting < 12
    backlog_s = run.dispatcher.ledger.nodes["p0"].view.backlog_until_s - run.now_s
    assert backlog_s < 2 * LONG / 10_000  # a prompt or two, not the flood
    head = held(run)[0]
    run.now_s += backlog_s
    assert started(run(TimerFired())) == [head]
    assert run.count(State.HELD) < waiting


def test_without_the_switch_everybody_is_committed_on_arrival() -> None:
    assert flooded(policy=Headroom(hold=False)).count(State.HELD) == 0


def test_nobody_is_held_while_nobody_waits() -> None:
    run = Harness(Headroom(), prefill=1, decode=1)
    for at in range(20):
        run.now_s += 1.0
        assert isinstance(run.arrive(f"r{at}"), StartPrefill)
        run(PrefillFinished(f"r{at}"))


def test_short_prompts_go_first_but_age_outweighs_length() -> None:
    run = flooded()
    run(RequestArrived(make_request("short", prompt_tokens=100)))
    assert run.dispatcher._live["short"].state is not State.HELD or held(run)[0] == "short"
    late = make_request("late", prompt_tokens=100, arrival_s=1000.0)
    cluster = make_cluster(prefill_node(), decode_node())
    policy = Headroom()
    assert policy.hold_key(late, cluster) > policy.hold_key(
        make_request(prompt_tokens=LONG), cluster
    )
    even = Headroom(work_weight=0.0)
    assert even.hold_key(make_request(prompt_tokens=LONG), cluster) == even.hold_key(
        make_request(prompt_tokens=1), cluster
    )


def test_a_stricter_class_goes_first() -> None:
    cluster = make_cluster(prefill_node(), decode_node())
    policy = Headroom()
    strict, loose = make_request(ttft_s=0.5), make_request(ttft_s=5.0)
    assert policy.hold_key(strict, cluster) < policy.hold_key(loose, cluster)


def test_inv_13_a_wake_up_is_pending_while_somebody_is_held_and_never_far() -> None:
    run = flooded()
    run(TimerFired())  # the harness let the first one pass
    assert run.now_s < run.dispatcher._held.timer_s <= run.now_s + REVIEW_S_MAX
    for _ in range(500):
        run.now_s = run.dispatcher._held.timer_s - 0.01  # the harness adds 10 ms
        orders = run(TimerFired())
        if not run.count(State.HELD):
            break
        assert any(isinstance(order, SetTimer) for order in orders)
    assert run.count(State.HELD) == 0


def test_a_full_line_commits_whoever_comes() -> None:
    specs = [make_spec("p0", Role.PREFILL), make_spec("d0")]
    dispatcher = Dispatcher(Headroom(), specs, DispatchLimits(held_max=2))
    for node_id in ("p0", "d0"):
        dispatcher.handle(NodeReported(make_state(node_id)), 0.0)
    for at in range(12):
        dispatcher.handle(RequestArrived(make_request(f"r{at}", prompt_tokens=LONG)), 0.0)
        check_dispatcher(dispatcher)
        assert dispatcher.counts[State.HELD] <= 2
    assert dispatcher.counts[State.HELD] == 2


def test_nobody_is_held_for_longer_than_the_bound() -> None:
    run = flooded()
    run.dispatcher.limits = DispatchLimits(hold_s_max=1.0)
    oldest = min(held(run), key=lambda one: run.dispatcher._live[one].index)
    run.now_s = 1.5
    run(TimerFired())
    assert run.dispatcher._live[oldest].state is not State.HELD


@pytest.mark.parametrize(
    "changes", [{"held_max": -1}, {"hold_s_max": -1.0}, {"hold_s_max": float("nan")}]
)
def test_bounds_that_make_no_sense_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must"):
        DispatchLimits(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["feed_decode_steps", "feed_steps", "slow_frac", "work_weight"])
def test_weights_that_make_no_sense_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        Headroom(**{option: -1.0})  # type: ignore[arg-type]


def test_a_held_client_that_leaves_needs_no_abort() -> None:
    run = flooded()
    gone = held(run)[-1]
    waiting = run.count(State.HELD)
    assert not any(getattr(order, "request_id", "") == gone for order in run(ClientLeft(gone)))
    assert run.count(State.HELD) <= waiting - 1


def test_a_held_request_whose_patience_ends_is_told_so() -> None:
    run = flooded()
    run(RequestArrived(make_request("hasty", prompt_tokens=LONG)._replace(deadline_s=0.2)))
    assert "hasty" in held(run)
    run.now_s = 0.3
    orders = run(LegFailed("hasty", "", "deadline_passed"))
    assert orders[0] == AnswerError("hasty", 504, "deadline_passed")
    assert "hasty" not in held(run)


def test_when_the_last_node_is_lost_the_held_are_told() -> None:
    run = flooded()
    waiting = held(run)
    run(NodeLost("p0", "gone"))
    orders = run(NodeLost("d0", "gone"))
    told = {order.request_id for order in orders if isinstance(order, AnswerError)}
    for _ in range(len(waiting)):
        orders = run(TimerFired())
        told |= {order.request_id for order in orders if isinstance(order, AnswerError)}
    assert set(waiting) <= told
    assert run.count(State.HELD) == 0


def test_sangam_holds_in_order_and_nobody_overtakes() -> None:
    run = Harness(Sangam(overload_tokens=4000), prefill=1, decode=1)
    for at in range(6):
        run(RequestArrived(make_request(f"r{at}", prompt_tokens=4000)))
    run(RequestArrived(make_request("short", prompt_tokens=10)))
    assert held(run) == ["r2", "r3", "r4", "r5", "short"]
    assert started(run(PrefillFinished("r0"))) == ["r2"]
    assert held(run) == ["r3", "r4", "r5", "short"]
    now = Harness(Sangam(overload_tokens=4000, hold=False), prefill=1, decode=1)
    for at in range(6):
        now(RequestArrived(make_request(f"r{at}", prompt_tokens=4000)))
    assert now.count(State.HELD) == 0


def test_a_policy_that_never_holds_has_no_line() -> None:
    assert HoldLine(AlwaysDeflect()).policy is None
    assert HoldLine(Headroom()).policy is not None


def test_the_line_keeps_its_order_when_somebody_leaves_its_middle() -> None:
    line, cluster = HoldLine(Sangam()), make_cluster(prefill_node(), decode_node())
    tracked = [
        Tracked(make_request(f"r{at}", arrival_s=moment), at)
        for at, moment in enumerate((3.0, 1.0, 2.0, 1.0))
    ]
    for one in tracked:
        line.add(one, cluster)
    assert [one.index for one in line] == [1, 3, 2, 0]
    line.drop(tracked[2])
    assert [one.index for one in line] == [1, 3, 0]
    assert len(line) == 3


def test_plans_are_undone() -> None:
    views = [prefill_node("p0", 4000), prefill_node("p1", 8000)]
    before = [view.backlog_until_s for view in views]
    planned = Planned()
    for view in (*views, views[0]):
        planned.book(view, 99.0)
    planned.undo("p1")
    assert [view.backlog_until_s for view in views] == [99.0, before[1]]
    planned.undo()
    assert [view.backlog_until_s for view in views] == before


def test_a_decision_to_hold_names_the_node_and_when_it_is_due() -> None:
    cluster = make_cluster(prefill_node("p0", 40_000), decode_node("d0", 0, kv_capacity_tokens=1))
    cluster.may_hold = True
    decision = Headroom().decide(make_request(), cluster)
    assert (decision.route, decision.reason) == (Route.HELD, Reason.WORTH_WAITING)
    assert decision.prefill_node_id == "p0"
    feed_s = Headroom().feed_s(cluster.prefill[0])
    due_s = cluster.prefill[0].backlog_until_s - feed_s
    assert decision.hold_until_s == pytest.approx(due_s)
    cluster.may_hold = False
    assert Headroom().decide(make_request(), cluster).route is Route.PREFILL


def test_a_node_is_fed_ahead_by_its_own_pools_steps() -> None:
    policy = Headroom(feed_steps=2.0, feed_decode_steps=1.25)
    cluster = make_cluster(prefill_node("p0"), decode_node("d0", 5), decode_node("d1", 0))
    full_step_s = cluster.prefill[0].spec.full_step_s
    busy, idle = cluster.decode
    assert policy.feed_s(cluster.prefill[0]) == pytest.approx(2 * full_step_s)
    limit_s = busy.tbt_s_min * busy.spec.tbt_margin_frac
    assert policy.feed_s(busy) == pytest.approx(1.25 * limit_s)
    # Nobody's target bounds the steps of an idle one.
    assert policy.feed_s(idle) == pytest.approx(1.25 * idle.spec.full_step_s)
