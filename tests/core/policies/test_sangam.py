"""Sangam: who counts as overloaded, and what is done while everybody is."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies.sangam import Sangam
from spillway.core.types import NodeView

FULL = 16_384


def decide(*nodes: NodeView) -> Decision:
    return Sangam().decide(make_request(), make_cluster(*nodes))


@pytest.mark.parametrize(
    ("backlogs_tokens", "deflected"),
    [((FULL, FULL - 1), False), ((FULL, FULL), True), ((90_000, 0), False)],
)
def test_only_while_every_prefill_node_is_overloaded(
    backlogs_tokens: tuple[int, int], deflected: bool
) -> None:
    prefills = [prefill_node(f"p{at}", tokens) for at, tokens in enumerate(backlogs_tokens)]
    decision = decide(*prefills, decode_node())
    assert (decision.route is Route.DEFLECTED) == deflected
    if not deflected:
        assert (decision.prefill_node_id, decision.reason) == ("p1", Reason.NO_PRESSURE)


def test_a_prefill_node_without_kv_room_is_overloaded_too() -> None:
    assert decide(prefill_node(kv_capacity_tokens=1999), decode_node()).route is Route.DEFLECTED
    assert decide(prefill_node(kv_capacity_tokens=2000), decode_node()).route is Route.PREFILL
    assert decide(prefill_node(kv_capacity_tokens=0), decode_node()).route is Route.PREFILL


def test_the_decode_node_with_the_fewest_prompt_tokens_takes_it() -> None:
    busy, calm = prefilling(decode_node("d0"), 3000), decode_node("d1", 60)
    assert decide(prefill_node("p0", FULL), busy, calm).decode_node_id == "d1"


def test_an_overloaded_decode_node_does_not_and_the_shortest_queue_must() -> None:
    decision = decide(
        prefill_node("p0", FULL + 9),
        prefill_node("p1", FULL),
        prefilling(decode_node("d0"), FULL),
        decode_node("d1", kv_capacity_tokens=1000),
    )
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    assert decision.prefill_node_id == "p1"
    assert [one.verdict for one in decision.candidates[1:]] == [Reason.CAP_VETO, Reason.KV_VETO]
