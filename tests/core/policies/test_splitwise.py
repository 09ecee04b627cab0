"""Splitwise: whose queue is long, and in which order machines are asked."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies.splitwise import SplitwiseMixed
from spillway.core.types import NodeView


def decide(*nodes: NodeView, prompt_tokens: int = 2000) -> Decision:
    return SplitwiseMixed().decide(make_request(prompt_tokens=prompt_tokens), make_cluster(*nodes))


@pytest.mark.parametrize(
    ("backlog_tokens", "prompt_tokens", "deflected"),
    [
        (6192, 2000, False),  # 8192 together: not yet long
        (6193, 2000, True),
        (0, 30_000, False),  # nobody waits, so no queue is long
        (1, 30_000, True),
    ],
)
def test_a_queue_is_long_when_prompts_wait_and_this_one_would_exceed_the_limit(
    backlog_tokens: int, prompt_tokens: int, deflected: bool
) -> None:
    decision = decide(
        prefill_node("p0", backlog_tokens), decode_node(), prompt_tokens=prompt_tokens
    )
    assert (decision.route is Route.DEFLECTED) == deflected
    assert decision.reason is (Reason.PREFILL_BUSY if deflected else Reason.NO_PRESSURE)


def test_a_mixed_node_is_asked_before_a_token_node_is_converted() -> None:
    mixed, token = prefilling(decode_node("d0", 40), 3000), decode_node("d1")
    assert decide(prefill_node("p0", 9000), mixed, token).decode_node_id == "d0"


def test_a_mixed_node_with_a_long_queue_leaves_it_to_the_emptiest_token_node() -> None:
    mixed = prefilling(decode_node("d0"), 7000)
    full, empty = decode_node("d1", 40), decode_node("d2", 10)
    assert decide(prefill_node("p0", 9000), mixed, full, empty).decode_node_id == "d2"


def test_when_every_queue_is_long_the_shortest_of_all_is_taken() -> None:
    mixed = prefilling(decode_node("d0"), 7000)
    assert decide(prefill_node("p0", 9000), mixed).route is Route.DEFLECTED
    mixed = prefilling(decode_node("d0"), 9500)
    decision = decide(prefill_node("p0", 9000), mixed)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_PRESSURE)


def test_a_vetoed_node_is_passed_over_and_named() -> None:
    nodes = (decode_node("d0", over_budget=True), decode_node("d1", 30))
    decision = decide(prefill_node("p0", 9000), *nodes)
    assert decision.decode_node_id == "d1"
    assert Reason.TBT_VETO in [one.verdict for one in decision.candidates]
    decision = decide(prefill_node("p0", 9000), nodes[0])
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)


def test_kv_goes_to_the_emptiest_token_node_with_room_and_then_to_a_mixed_one() -> None:
    token, mixed = decode_node("d0", 40), prefilling(decode_node("d1"), 3000)
    full = decode_node("d2", kv_capacity_tokens=1000)
    pick = SplitwiseMixed().pick_decode
    assert pick(make_request(), make_cluster(token, mixed, full)) == "d0"
    assert pick(make_request(), make_cluster(mixed, full)) == "d1"
    assert pick(make_request(), make_cluster(full)) == "d2"
