"""A deflection that its node declines: decided again on the node's own word, and never for ever."""

from __future__ import annotations

from builders import make_request, make_spec, make_state
from harness import AlwaysDeflect, Harness
from spillway.core.dispatcher import Dispatcher
from spillway.core.events import (
    Action,
    AnswerError,
    LegFailed,
    LogDecision,
    NodeLost,
    NodeReported,
    RequestArrived,
    SetTimer,
    StartDeflected,
    StartPrefill,
    TimerFired,
)
from spillway.core.headroom import Headroom
from spillway.core.invariants import check_dispatcher
from spillway.core.lifecycle import State
from spillway.core.reservation import DECLINED_MAX, UNLIMITED
from spillway.core.types import Role


def declined(request_id: str, node_id: str) -> LegFailed:
    return LegFailed(request_id, node_id, "backlog", refused=True, declined=True)


def test_a_declined_prompt_goes_where_the_nodes_own_word_sends_it() -> None:
    run = Harness(AlwaysDeflect())
    first = run.arrive()
    assert isinstance(first, StartDeflected)
    other = {"d0": "d1", "d1": "d0"}[first.node_id]
    busy = make_state(first.node_id, taken_at_s=1.0, backlog_prompts=4, backlog_tokens=30_000)
    (second,) = run(NodeReported(busy), declined("r1", first.node_id))
    assert isinstance(second, StartDeflected)
    assert (second.node_id, second.dispatch_id) == (other, 2)


def test_a_node_that_declined_may_be_asked_again_but_not_for_ever() -> None:
    run = Harness(AlwaysDeflect(), decode=1, retries_max=0)
    order: Action = run.arrive()
    for _ in range(DECLINED_MAX):
        assert isinstance(order, StartDeflected)
        assert order.backlog_tokens_max >= 0
        (order,) = run(declined("r1", "d0"))
    assert isinstance(order, StartDeflected)
    assert order.backlog_tokens_max == UNLIMITED
    assert run.count(State.FAILED) == 0


def test_what_is_declined_counts_neither_as_a_failure_nor_against_the_retries() -> None:
    run = Harness(AlwaysDeflect(), retries_max=1)
    run.arrive()
    (order,) = run(declined("r1", "d0"))
    assert isinstance(order, StartDeflected)
    (order,) = run(LegFailed("r1", order.node_id, "connection reset"))
    assert not isinstance(order, AnswerError)


def test_the_log_says_who_declined_once() -> None:
    run = Harness(AlwaysDeflect(), decode=1)
    run.arrive()
    logs = [
        order.declined_by
        for event in (declined("r1", "d0"), LegFailed("r1", "d0", "connection reset"))
        for order in run.dispatcher.handle(event, run.now_s)
        if isinstance(order, LogDecision)
    ]
    assert logs == ["d0", ""]


def test_a_declined_prompt_may_be_held_until_a_node_is_due() -> None:
    specs = [make_spec("p0", Role.PREFILL), make_spec("d0")]
    dispatcher = Dispatcher(Headroom(), specs)
    full = {"backlog_prompts": 4, "backlog_tokens": 30_000, "backlog_token_pairs": 1e8}
    for state in (make_state("p0", **full), make_state("d0")):
        dispatcher.handle(NodeReported(state), 0.0)
    (_, order) = dispatcher.handle(RequestArrived(make_request()), 0.0)
    assert isinstance(order, StartDeflected)
    dispatcher.handle(NodeReported(make_state("d0", taken_at_s=0.001, **full)), 0.001)
    (timer,) = dispatcher.handle(declined("r1", "d0"), 0.002)
    check_dispatcher(dispatcher)
    assert isinstance(timer, SetTimer)
    assert dispatcher.counts[State.HELD] == 1
    dispatcher.handle(NodeReported(make_state("p0", taken_at_s=0.01)), 0.01)
    orders = dispatcher.handle(TimerFired(), timer.at_s)
    assert [type(one) for one in orders] == [LogDecision, StartPrefill]


def test_a_prompt_that_was_declined_held_and_lost_its_nodes_has_failed() -> None:
    specs = [make_spec("p0", Role.PREFILL), make_spec("d0")]
    dispatcher = Dispatcher(Headroom(), specs)
    full = {"backlog_prompts": 4, "backlog_tokens": 30_000, "backlog_token_pairs": 1e8}
    for state in (make_state("p0", **full), make_state("d0")):
        dispatcher.handle(NodeReported(state), 0.0)
    dispatcher.handle(RequestArrived(make_request()), 0.0)
    dispatcher.handle(NodeReported(make_state("d0", taken_at_s=0.001, **full)), 0.001)
    dispatcher.handle(declined("r1", "d0"), 0.002)
    dispatcher.handle(NodeLost("d0", "died"), 0.003)
    dispatcher.handle(NodeLost("p0", "died"), 0.003)
    check_dispatcher(dispatcher)
    assert (dispatcher.counts[State.FAILED], dispatcher.counts[State.REJECTED]) == (1, 0)
