"""The dispatcher when legs fail, nodes come and go, clients leave and facts come late."""

from __future__ import annotations

import pytest

from builders import make_state
from harness import AlwaysDeflect, Harness, broken, refused
from spillway.core.baselines import LeastLoaded
from spillway.core.decide import Policy, Reason
from spillway.core.events import (
    AbortOnNode,
    AnswerError,
    ClientLeft,
    Event,
    FirstToken,
    NodeBack,
    NodeLost,
    NodeReported,
    PrefillFinished,
    RequestFinished,
    StartDecode,
    StartDeflected,
    StartPrefill,
)
from spillway.core.lifecycle import State

# --- retries ---------------------------------------------------------------------------------


def test_a_refused_prompt_is_started_on_another_prefill_node() -> None:
    run = Harness()
    run.arrive()
    assert run(refused("r1", "p0")) == [StartPrefill("r1", "p1", 2)]
    assert run.dispatcher.ledger.nodes["p0"].view.backlog_prompts == 0
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d0", 3, "p1")]


def test_a_prompt_that_no_prefill_node_takes_is_deflected() -> None:
    run = Harness(prefill=1)
    run.arrive()
    assert run(refused("r1", "p0")) == [StartDeflected("r1", "d0", 2, 0.06, (), 500)]


def test_a_refused_decode_is_tried_elsewhere_with_the_same_kv() -> None:
    run = Harness()
    run.arrive()
    run(PrefillFinished("r1"))
    assert run(refused("r1", "d0")) == [StartDecode("r1", "d1", 3, "p0")]
    assert run.dispatcher.ledger.nodes["d0"].view.decode_seqs == 0


@pytest.mark.parametrize("how", [{"kv_lost": True, "refused": True}, {"kv_lost": True}, {}])
def test_without_its_kv_the_prefill_is_done_again(how: dict[str, bool]) -> None:
    """Also when the decode node may have begun: what it pulled cannot be pulled again."""
    run = Harness()
    run.arrive()
    run(PrefillFinished("r1"))
    (order,) = run(broken("r1", "d0", **how))
    assert isinstance(order, StartPrefill)
    assert run.count(State.PREFILLING) == 1
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d1", 4, order.node_id)]


def test_kv_that_died_with_its_prefill_node_is_no_fault_of_the_only_decode_node() -> None:
    run = Harness(decode=1)
    run.arrive()
    run(PrefillFinished("r1"), NodeLost("p0", "died"))
    assert run(broken("r1", "d0", kv_lost=True)) == [StartPrefill("r1", "p1", 3)]
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d0", 4, "p1")]


def test_a_broken_deflection_moves_to_another_node() -> None:
    run = Harness(AlwaysDeflect())
    run.arrive()
    (order,) = run(broken("r1", "d0"))
    assert isinstance(order, StartDeflected)
    assert order.node_id == "d1"


@pytest.mark.parametrize(("how", "status"), [({"refused": True}, 503), ({}, 502)])
@pytest.mark.parametrize("retries_max", [0, 1, 2])
def test_retries_are_bounded_and_never_go_back_to_a_node_that_failed(
    retries_max: int, how: dict[str, bool], status: int
) -> None:
    run = Harness(prefill=4, retries_max=retries_max)
    order = run.arrive()
    tried = []
    for _ in range(retries_max):
        assert isinstance(order, StartPrefill)
        tried.append(order.node_id)
        (order,) = run(broken("r1", order.node_id, **how))
    assert isinstance(order, StartPrefill)
    assert order.node_id not in tried
    (last,) = run(broken("r1", order.node_id, **how))
    assert last == AnswerError("r1", status, "connection reset")
    assert run.count(State.FAILED) == 1
    assert len({*tried, order.node_id}) == retries_max + 1


def test_retries_of_all_legs_count_together() -> None:
    run = Harness(retries_max=1)
    run.arrive()
    run(refused("r1", "p0"), PrefillFinished("r1"))
    (order,) = run(refused("r1", "d0"))
    assert order == AnswerError("r1", 503, "connection refused")


@pytest.mark.parametrize("policy", [LeastLoaded(), AlwaysDeflect()])
@pytest.mark.parametrize("streaming", [True, False])
def test_after_the_first_token_nothing_is_retried(policy: Policy, streaming: bool) -> None:
    """Whether or not the driver adds that bytes had left: a second start would repeat tokens."""
    run = Harness(policy)
    if isinstance(run.arrive(), StartPrefill):
        run(PrefillFinished("r1"))
    run(FirstToken("r1"))
    assert run(broken("r1", "d0", streaming=streaming)) == [
        AnswerError("r1", 502, "connection reset")
    ]
    assert run.count(State.FAILED) == 1


def test_the_only_decode_node_refuses_and_the_client_is_told() -> None:
    run = Harness(decode=1)
    run.arrive()
    run(PrefillFinished("r1"))
    assert run(refused("r1", "d0")) == [AnswerError("r1", 503, Reason.NO_NODE)]
    assert run.count(State.FAILED) == 1


def test_a_failure_elsewhere_than_on_the_current_leg_is_late_news() -> None:
    run = Harness()
    run.arrive()
    assert run(broken("r1", "p1")) == []
    assert run.dispatcher.ignored_events == 1
    assert run.count(State.PREFILLING) == 1


# --- nodes come and go -----------------------------------------------------------------------


def test_a_lost_node_gets_nothing_until_it_is_back() -> None:
    run = Harness()
    run(NodeLost("p0", "no answer"), NodeLost("d0", "no answer"))
    assert run.arrive("r1") == StartPrefill("r1", "p1", 1)
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d1", 2, "p1")]
    run(NodeBack("p0"), NodeBack("d0"))
    assert run.arrive("r2") == StartPrefill("r2", "p0", 3)


def test_a_node_that_is_back_is_not_trusted_with_a_prompt_before_it_reports() -> None:
    run = Harness(AlwaysDeflect(), decode=1)
    run(NodeLost("d0", "no answer"), NodeBack("d0"))
    assert run.arrive("r1") == AnswerError("r1", 503, Reason.NO_NODE)
    run(NodeReported(make_state("d0", taken_at_s=run.now_s)))
    assert isinstance(run.arrive("r2"), StartDeflected)


def test_news_of_a_node_that_was_never_lost_change_nothing() -> None:
    run = Harness()
    view = run.dispatcher.ledger.nodes["d0"].view
    heard_at_s = view.heard_at_s
    run(NodeBack("d0"))
    assert (view.usable, view.reporting, view.heard_at_s) == (True, True, heard_at_s)


def test_with_both_pools_down_the_client_gets_a_503() -> None:
    run = Harness()
    for node_id in ("p0", "p1", "d0", "d1"):
        run(NodeLost(node_id, "no answer"))
    assert run.arrive() == AnswerError("r1", 503, Reason.NO_NODE)
    assert run.count(State.REJECTED) == 1
    assert run.dispatcher.live_requests == 0


def test_a_prefilled_request_without_a_decode_node_is_failed_and_answered() -> None:
    run = Harness()
    run.arrive()
    run(NodeLost("d0", "no answer"), NodeLost("d1", "no answer"))
    assert run(PrefillFinished("r1")) == [AnswerError("r1", 503, Reason.NO_NODE)]
    assert run.count(State.FAILED) == 1


def test_work_on_a_lost_node_stays_booked_until_its_own_leg_fails() -> None:
    run = Harness()
    run.arrive()
    run(NodeLost("p0", "no answer"))
    assert run.dispatcher.ledger.nodes["p0"].outstanding == 1
    assert run(broken("r1", "p0")) == [StartPrefill("r1", "p1", 2)]
    assert run.dispatcher.ledger.nodes["p0"].outstanding == 0


@pytest.mark.parametrize(
    "event",
    [
        NodeReported(make_state("x9")),
        NodeLost("x9", "who"),
        NodeBack("x9"),
        NodeReported(make_state("d0", taken_at_s=-1.0)),  # overtaken by what is known
    ],
)
def test_news_of_unknown_nodes_and_overtaken_reports_are_counted(event: Event) -> None:
    run = Harness()
    assert run(event) == []
    assert run.dispatcher.ignored_events == 1


def test_a_report_of_a_lost_node_does_not_bring_it_back() -> None:
    run = Harness()
    run(NodeLost("d0", "no answer"), NodeReported(make_state("d0", taken_at_s=1.0)))
    assert not run.dispatcher.ledger.nodes["d0"].view.usable
    assert run.dispatcher.ignored_events == 1


# --- clients leave, facts come late ----------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "before", "node_id"),
    [
        (LeastLoaded(), (), "p0"),
        (LeastLoaded(), (PrefillFinished("r1"),), "d0"),
        (LeastLoaded(), (PrefillFinished("r1"), FirstToken("r1")), "d0"),
        (AlwaysDeflect(), (), "d0"),
        (AlwaysDeflect(), (FirstToken("r1"),), "d0"),
    ],
)
def test_a_client_that_leaves_stops_the_leg_under_way(
    policy: Policy, before: tuple[Event, ...], node_id: str
) -> None:
    run = Harness(policy)
    run.arrive()
    run(*before)
    assert run(ClientLeft("r1")) == [AbortOnNode("r1", node_id)]
    assert run.count(State.CANCELLED) == 1


LATE = (
    PrefillFinished("r1"),
    FirstToken("r1"),
    RequestFinished("r1", 500),
    broken("r1", "d0"),
    ClientLeft("r1"),
)


@pytest.mark.parametrize("event", LATE, ids=lambda event: type(event).__name__)
def test_a_fact_about_a_request_that_has_ended_is_ignored_and_counted(event: Event) -> None:
    run = Harness()
    run.arrive()
    run(ClientLeft("r1"))
    counts = list(run.dispatcher.counts)
    assert run(event) == []
    assert run.dispatcher.ignored_events == 1
    assert run.dispatcher.counts == counts
    assert run.dispatcher.ledger.lengths.by_class == {}


def test_a_prefill_that_finishes_twice_starts_one_decode() -> None:
    run = Harness()
    run.arrive()
    run(PrefillFinished("r1"))
    assert run(PrefillFinished("r1")) == []
    assert run.dispatcher.ignored_events == 1
