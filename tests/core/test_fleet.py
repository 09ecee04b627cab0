"""Nodes that come and go while requests run: what the books make of them."""

from __future__ import annotations

import pytest

from builders import make_spec
from harness import AlwaysDeflect, Harness
from spillway.core.errors import InvariantViolation
from spillway.core.events import (
    FirstToken,
    NodeBack,
    NodeJoined,
    NodeLeft,
    PrefillFinished,
    RequestFinished,
    StartDecode,
    StartPrefill,
)
from spillway.core.invariants import check_dispatcher
from spillway.core.types import Role

NEW_PREFILL = make_spec("p0a", Role.PREFILL)


def seen_by_policies(run: Harness) -> tuple[list[str], list[str]]:
    cluster = run.dispatcher.ledger.cluster(run.now_s, 0)
    names = [[node.spec.node_id for node in pool] for pool in (cluster.prefill, cluster.decode)]
    return names[0], names[1]


def test_a_node_that_joins_gets_nothing_before_it_answers() -> None:
    run = Harness(prefill=1)
    assert run(NodeJoined(NEW_PREFILL)) == []
    orders = [run.arrive(request_id) for request_id in ("r1", "r2")]
    assert orders == [StartPrefill("r1", "p0", 1), StartPrefill("r2", "p0", 2)]
    run(NodeBack("p0a"))
    assert run.arrive("r3") == StartPrefill("r3", "p0a", 3)


def test_policies_see_nodes_in_the_order_of_their_ids_whoever_came_first() -> None:
    run = Harness(prefill=2, decode=1)
    for spec in (make_spec("d9"), NEW_PREFILL, make_spec("d5")):
        run(NodeJoined(spec))
    assert seen_by_policies(run) == (["p0", "p0a", "p1"], ["d0", "d5", "d9"])


def test_a_node_that_joins_twice_is_the_same_node() -> None:
    run = Harness(AlwaysDeflect(), decode=1)
    run.arrive()
    before = run.dispatcher.ignored_events
    run(NodeJoined(make_spec("d0")))
    assert run.dispatcher.ignored_events == before + 1
    assert run.dispatcher.ledger.nodes["d0"].view.backlog_prompts == 1


def test_a_node_leaves_once_nothing_depends_on_it() -> None:
    run = Harness(prefill=1, decode=1)
    assert run.arrive() == StartPrefill("r1", "p0", 1)
    assert run(PrefillFinished("r1")) == [StartDecode("r1", "d0", 2, "p0")]
    for node_id in ("p0", "d0"):  # the KV is still on p0, the request is bound for d0
        run(NodeLeft(node_id))
    assert seen_by_policies(run) == (["p0"], ["d0"])
    assert run.dispatcher.ignored_events == 2
    run(FirstToken("r1"))
    run(RequestFinished("r1", 30))
    for node_id in ("p0", "d0"):
        run(NodeLeft(node_id))
    assert seen_by_policies(run) == ([], [])
    check_dispatcher(run.dispatcher)


def test_a_stranger_cannot_leave() -> None:
    run = Harness()
    run(NodeLeft("nobody"))
    assert run.dispatcher.ignored_events == 1


def test_the_ledger_closes_no_book_with_work_in_it() -> None:
    run = Harness(AlwaysDeflect(), decode=1)
    run.arrive()
    with pytest.raises(InvariantViolation, match="d0 leaves with work outstanding"):
        run.dispatcher.ledger.leave("d0")
