"""A policy that looks on changes nothing of what is done, and says what it would have done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import pytest

from builders import make_cluster, make_node, make_request, make_spec, make_state
from harness import AlwaysDeflect, Broken, Contradictory, Harness
from spillway.core.baselines import LeastLoaded
from spillway.core.decide import Decision, HoldingPolicy, Policy, Reason, Route
from spillway.core.dispatcher import Dispatcher
from spillway.core.events import (
    Action,
    AnswerError,
    Event,
    FirstToken,
    LogDecision,
    NodeReported,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    SetTimer,
    StartDecode,
    StartPrefill,
    TimerFired,
)
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.core.shadow import Shadowed, routing_policy, with_shadow
from spillway.core.types import ClusterView, RequestView, Role

STATIC = ("round-robin", "least-loaded", "power-of-two")


def drive(policy: Policy, requests: int = 60) -> list[Action]:
    """Return every order of a dispatcher whose nodes are busy and do what they are told, late."""
    specs = [make_spec(f"p{at}", Role.PREFILL) for at in range(2)]
    specs += [make_spec(f"d{at}") for at in range(2)]
    dispatcher = Dispatcher(policy, specs, record_views=True)
    orders: list[Action] = []
    to_come: deque[Event] = deque()
    now_s = 0.0
    for spec in specs:
        dispatcher.handle(NodeReported(make_state(spec.node_id)), now_s)
    for number in range(requests):
        events: list[Event] = [
            RequestArrived(
                make_request(f"r{number}", arrival_s=now_s, prompt_tokens=500 + 977 * number % 9000)
            )
        ]
        events += [to_come.popleft() for _ in range(min(2, len(to_come)))] if number > 20 else []
        for event in events:
            now_s += 0.011
            given = dispatcher.handle(event, now_s)
            orders += given
            to_come += [fact for order in given for fact in follows(order)]
    return orders


def follows(order: Action) -> Sequence[Event]:
    if isinstance(order, StartPrefill):
        return [PrefillFinished(order.request_id)]
    if isinstance(order, SetTimer):
        return [TimerFired()]
    if isinstance(order, LogDecision | AnswerError):
        return []
    request_id = order.request_id
    return [FirstToken(request_id), RequestFinished(request_id, 40)]


def without_shadow(orders: Sequence[Action]) -> bytes:
    return "\n".join(
        repr(
            order._replace(decision=order.decision._replace(shadow=None))
            if isinstance(order, LogDecision)
            else order
        )
        for order in orders
    ).encode()


def decisions(orders: Sequence[Action]) -> list[Decision]:
    return [order.decision for order in orders if isinstance(order, LogDecision)]


@pytest.mark.parametrize("static", STATIC)
@pytest.mark.parametrize("name", POLICY_NAMES)
def test_what_is_done_is_what_the_static_policy_does_alone(static: str, name: str) -> None:
    alone = drive(build_policy(static))
    watched = drive(with_shadow(build_policy(static), build_policy(name), name))
    assert without_shadow(watched) == without_shadow(alone)
    assert any(isinstance(order, StartDecode) for order in alone)
    shadows = [one.shadow for one in decisions(watched)]
    assert len(shadows) == 60
    assert all(shadow is not None and shadow.policy == name for shadow in shadows)
    assert all(one.shadow is None for one in decisions(alone))


def test_the_shadow_of_a_static_policy_would_have_deflected_some() -> None:
    found = decisions(drive(with_shadow(LeastLoaded(), build_policy("headroom"))))
    routes = {one.shadow.decision.route for one in found if one.shadow is not None}
    assert routes == {Route.PREFILL, Route.DEFLECTED}
    assert {one.route for one in found} == {Route.PREFILL}


def test_a_policy_that_holds_goes_on_holding_under_a_shadow() -> None:
    alone = drive(build_policy("headroom"))
    watched = drive(with_shadow(build_policy("headroom"), build_policy("headroom"), "again"))
    assert without_shadow(watched) == without_shadow(alone)
    assert any(isinstance(order, SetTimer) for order in watched)
    routes = {one.shadow.decision.route for one in decisions(watched) if one.shadow is not None}
    assert Route.HELD not in routes


def test_only_who_holds_is_asked_for_a_place_in_the_line() -> None:
    headroom = build_policy("headroom")
    assert not isinstance(with_shadow(LeastLoaded(), headroom), HoldingPolicy)
    holding = with_shadow(headroom, LeastLoaded())
    assert isinstance(holding, HoldingPolicy)
    assert isinstance(headroom, HoldingPolicy)
    request, node = make_request(), make_node("p0", Role.PREFILL)
    cluster = make_cluster(node, make_node("d0"))
    assert holding.hold_key(request, cluster) == headroom.hold_key(request, cluster)
    assert holding.feed_s(node) == headroom.feed_s(node)
    assert holding.pick_decode(request, cluster) == "d0"


@pytest.mark.parametrize("shadow", [Broken(), Contradictory()])
def test_a_bug_in_the_shadow_touches_nothing(shadow: Policy) -> None:
    watched = drive(with_shadow(LeastLoaded(), shadow))
    assert without_shadow(watched) == without_shadow(drive(LeastLoaded()))
    found = {one.shadow.decision.reason for one in decisions(watched) if one.shadow is not None}
    assert found == {Reason.POLICY_FAILED}


def test_a_bug_in_the_policy_that_routes_is_handled_as_without_a_shadow() -> None:
    drive_it = Harness(with_shadow(Broken(), AlwaysDeflect()))
    assert isinstance(drive_it.arrive(), StartPrefill)
    assert drive_it.dispatcher.policy_failures == 1


class Blaming(LeastLoaded):
    """Notes what it may do."""

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        return (
            super()
            .decide(request, cluster)
            ._replace(reason=Reason.WORTH_WAITING if cluster.may_hold else Reason.STATIC)
        )


def test_the_shadow_may_not_hold_even_where_the_policy_may() -> None:
    cluster = make_cluster(make_node("p0", Role.PREFILL), make_node("d0"), may_hold=True)
    decided = Shadowed(Blaming(), Blaming()).decide(make_request(), cluster)
    assert decided.reason is Reason.WORTH_WAITING
    assert decided.shadow is not None
    assert decided.shadow.decision.reason is Reason.STATIC
    assert cluster.may_hold


def test_without_a_shadow_the_policy_stays_itself() -> None:
    policy = LeastLoaded()
    assert with_shadow(policy, None) is policy
    assert routing_policy(policy) is policy
    assert routing_policy(with_shadow(policy, AlwaysDeflect())) is policy
    assert with_shadow(policy, AlwaysDeflect()).name == "least-loaded"
