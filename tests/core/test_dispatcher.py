"""The dispatcher, fact by fact: what it books, what it orders, what it refuses to believe."""

from __future__ import annotations

from math import inf, nan
from typing import get_args

import pytest

from builders import make_request, make_spec
from harness import AlwaysDeflect, Broken, Contradictory, Harness
from spillway.core.baselines import LeastLoaded, RoundRobin
from spillway.core.decide import Reason, Route
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import ConfigError, InvariantViolation
from spillway.core.events import (
    ClientLeft,
    Event,
    FirstToken,
    LogDecision,
    NodeLost,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    StartDecode,
    StartDeflected,
    StartPrefill,
)
from spillway.core.headroom import Headroom
from spillway.core.invariants import check_dispatcher
from spillway.core.kairos import KairosPaper
from spillway.core.lifecycle import State
from spillway.core.ttft import link_s, transfer_bytes
from spillway.core.types import Role

# --- the two paths ---------------------------------------------------------------------------


def test_the_prefill_path_from_arrival_to_finish() -> None:
    run = Harness()
    assert run.arrive() == StartPrefill("r1", "p0", 1)
    assert run.count(State.PREFILLING) == 1
    assert run.dispatcher.ledger.nodes["p0"].view.backlog_tokens == 2000
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d0", 2, "p0")]
    assert run.count(State.TRANSFERRING) == 1
    assert run.dispatcher.ledger.nodes["p0"].view.backlog_tokens == 0
    assert run.dispatcher.ledger.nodes["d0"].view.decode_seqs == 1
    assert run(FirstToken("r1")) == []
    assert run.count(State.DECODING) == 1
    assert run(RequestFinished("r1", 30)) == []
    assert run.count(State.FINISHED) == 1
    assert run.dispatcher.live_requests == 0


def test_the_deflected_path_from_arrival_to_finish() -> None:
    run = Harness(AlwaysDeflect())
    assert run.arrive(tbt_s=0.05) == StartDeflected("r1", "d0", 1, 0.05, (), 500)
    assert run.count(State.DEFLECTED) == 1
    assert run.dispatcher.ledger.nodes["d0"].view.backlog_prompts == 1
    assert run(FirstToken("r1")) == []
    assert run.dispatcher.ledger.nodes["d0"].view.backlog_prompts == 0
    assert run(RequestFinished("r1")) == []
    assert run.count(State.FINISHED) == 1


def test_a_literal_schedule_rides_on_the_order_of_a_policy_that_wants_it() -> None:
    order = Harness(KairosPaper(), decode=1).arrive()
    assert isinstance(order, StartDeflected)
    assert sum(chunk * steps for chunk, steps in order.chunks) == 2000
    burst = Harness(Headroom(), prefill=1)
    orders = [order for at in range(30) for order in burst(RequestArrived(make_request(f"r{at}")))]
    deflected = [order for order in orders if isinstance(order, StartDeflected)]
    assert deflected
    assert all(order.chunks == () for order in deflected)


def test_an_answer_without_a_stream_has_no_first_token() -> None:
    run = Harness()
    run.arrive()
    run(PrefillFinished("r1"), RequestFinished("r1"))
    assert run.count(State.FINISHED) == 1


def test_dispatch_ids_rise_by_one_and_are_never_used_again() -> None:
    run = Harness()
    ids = []
    for at in range(3):
        for order in [run.arrive(f"r{at}"), *run(PrefillFinished(f"r{at}"))]:
            assert isinstance(order, StartPrefill | StartDecode)
            ids.append(order.dispatch_id)
    assert ids == [1, 2, 3, 4, 5, 6]


def test_the_log_holds_the_decision_and_the_view_it_was_made_from() -> None:
    run = Harness()
    request = make_request()
    log, start = run.dispatcher.handle(RequestArrived(request), 1.0)
    assert isinstance(log, LogDecision)
    assert isinstance(start, StartPrefill)
    assert log.cluster is not None
    assert (log.request, log.decided_at_s, log.cluster.now_s) == (request, 1.0, 1.0)
    assert log.cluster.prefill[0].backlog_tokens == 0  # before this request was booked
    assert LeastLoaded().decide(log.request, log.cluster) == log.decision


def test_views_are_not_copied_unless_asked_for() -> None:
    dispatcher = Dispatcher(LeastLoaded(), [make_spec("p0", Role.PREFILL), make_spec("d0")])
    log = dispatcher.handle(RequestArrived(make_request()), 0.0)[0]
    assert isinstance(log, LogDecision)
    assert log.cluster is None


def test_kv_on_the_way_keeps_the_link_busy_one_after_the_other() -> None:
    run = Harness(prefill=1)
    for request_id in ("r1", "r2"):
        run.arrive(request_id)
    run(PrefillFinished("r1"))
    begun_s = run.now_s
    run(PrefillFinished("r2"))
    source = run.dispatcher.ledger.nodes["p0"].view
    target = run.dispatcher.ledger.nodes["d0"].view
    one_s = link_s(source, target, transfer_bytes(make_request(), source, target))
    assert one_s > 0.01  # the second waits for the first
    assert source.link_until_s == pytest.approx(begun_s + 2 * one_s)


def test_completed_lengths_teach_later_decisions() -> None:
    run = Harness()
    run.arrive("r1", class_name="chat")
    run(PrefillFinished("r1"), RequestFinished("r1", 77))
    run.arrive("r2", class_name="chat")
    run(PrefillFinished("r2"), RequestFinished("r2", 0))  # not known to the driver
    assert run.dispatcher.ledger.cluster(9.0, 0).output_tokens_by_class == {"chat": 77}


def test_round_robin_spreads_a_burst_over_decode_nodes_as_well() -> None:
    """Ten arrivals, then ten prefills finish: each request keeps its own place in the turn."""
    run = Harness(RoundRobin())
    for at in range(10):
        run.arrive(f"r{at}")
    placed = [order.node_id for at in range(10) for order in run(PrefillFinished(f"r{at}"))]
    assert placed == ["d0", "d1"] * 5


# --- what cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize("now_s", [0.99, -inf, nan])
def test_inv_3_time_does_not_go_back(now_s: float) -> None:
    dispatcher = Harness().dispatcher
    dispatcher.handle(ClientLeft("r1"), 1.0)
    with pytest.raises(InvariantViolation, match="time went back"):
        dispatcher.handle(ClientLeft("r1"), now_s)
    assert dispatcher.ignored_events == 1
    dispatcher.handle(ClientLeft("r1"), 1.0)  # at the same moment is fine


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ((), RequestArrived(make_request("r1"))),
        ((), FirstToken("r1")),
        ((PrefillFinished("r1"), FirstToken("r1")), FirstToken("r1")),
    ],
)
def test_an_impossible_fact_raises_and_changes_nothing(
    before: tuple[Event, ...], event: Event
) -> None:
    run = Harness()
    run.arrive()
    run(*before)
    counts, arrived = list(run.dispatcher.counts), run.dispatcher.arrived
    with pytest.raises(InvariantViolation):
        run(event)
    check_dispatcher(run.dispatcher)
    assert (run.dispatcher.counts, run.dispatcher.arrived) == (counts, arrived)
    run(ClientLeft("r1"))
    assert run.count(State.CANCELLED) == 1


def test_every_kind_of_fact_is_handled() -> None:
    assert set(get_args(Event)) == set(Harness().dispatcher._handlers)


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        ([make_spec("a", Role.PREFILL), make_spec("a")], "share one id"),
        ([make_spec("a", Role.PREFILL)], "no decode node"),
        ([], "no decode node"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(specs: list, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Dispatcher(LeastLoaded(), specs)


@pytest.mark.parametrize(
    "limits",
    [{"report_age_max_s": 0.0}, {"report_age_max_s": nan}, {"retries_max": -1}],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        DispatchLimits(**limits)  # type: ignore[arg-type]


# --- a policy with a bug ---------------------------------------------------------------------


def test_a_bug_in_a_policy_does_not_lose_the_request() -> None:
    run = Harness(Broken())
    assert run.arrive() == StartPrefill("r1", "p0", 1)
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d0", 2, "p0")]
    assert run.dispatcher.policy_failures == 2
    run(NodeLost("p0", "gone"), NodeLost("p1", "gone"))
    assert isinstance(run.arrive("r2"), StartDeflected)


def test_the_fall_back_says_that_the_policy_failed() -> None:
    run = Harness(Broken())
    log = run.dispatcher.handle(RequestArrived(make_request()), 1.0)[0]
    assert isinstance(log, LogDecision)
    assert (log.decision.route, log.decision.reason) == (Route.PREFILL, Reason.POLICY_FAILED)


def test_a_broken_invariant_is_never_fallen_back_from() -> None:
    with pytest.raises(InvariantViolation):
        Harness(Contradictory()).arrive()
