"""xLLM's four conditions, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies.xllm import Xllm
from spillway.core.types import NodeView

LATE_TOKENS = 14_000  # about 1.1 s on a prefill node


def decide(*nodes: NodeView, options: dict[str, Any] | None = None) -> Decision:
    return Xllm(**(options or {})).decide(make_request(), make_cluster(*nodes))


def two_decodes(first_seqs: int = 60, second_seqs: int = 2) -> list[NodeView]:
    return [decode_node("d0", first_seqs), decode_node("d1", second_seqs)]


def test_a_late_prompt_goes_to_the_idlest_node_that_is_not_the_one_to_decode() -> None:
    decision = decide(prefill_node("p0", LATE_TOKENS), *two_decodes())
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.PREFILL_BUSY)
    assert decision.decode_node_id == "d1"


@pytest.mark.parametrize(("target_ttft_s", "late"), [(1.0, True), (1.2, False), (0.0, True)])
def test_the_prefill_pool_is_late_when_its_backlog_exceeds_the_ttft_target(
    target_ttft_s: float, late: bool
) -> None:
    prefill = prefill_node("p0", LATE_TOKENS)
    assert 1.0 < prefill.backlog_until_s < 1.2
    decision = decide(prefill, *two_decodes(), options={"target_ttft_s": target_ttft_s})
    assert (decision.route is Route.DEFLECTED) == late


def test_the_first_node_within_the_target_decodes_and_then_the_idlest_is_no_other() -> None:
    nodes = two_decodes(2, 60)  # d0 comes first and is the idlest as well
    decision = decide(prefill_node("p0", LATE_TOKENS), *nodes)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    decision = decide(prefill_node("p0", LATE_TOKENS), *nodes, options={"apart": False})
    assert (decision.route, decision.decode_node_id) == (Route.DEFLECTED, "d0")


def test_the_idlest_step_must_leave_a_share_of_the_target() -> None:
    nodes = two_decodes(100, 60)
    prefill = prefill_node("p0", LATE_TOKENS)
    # 60 streams of 1,000 tokens: a step of 17.5 ms, against half of the target for two nodes.
    assert decide(prefill, *nodes, options={"target_tbt_s": 0.036}).route is Route.DEFLECTED
    assert decide(prefill, *nodes, options={"target_tbt_s": 0.034}).route is Route.PREFILL


def test_with_a_single_decode_node_nothing_is_ever_lent() -> None:
    decision = decide(prefill_node("p0", 90_000), decode_node(), options={"apart": False})
    assert decision.route is Route.PREFILL


def test_the_idlest_node_must_itself_be_less_late() -> None:
    d0, d1 = two_decodes()
    prefilling(d1, 4000, seconds=1.05)
    assert decide(prefill_node("p0", LATE_TOKENS), d0, d1).route is Route.DEFLECTED
    d1.backlog_until_s = 1.2
    assert decide(prefill_node("p0", LATE_TOKENS), d0, d1).route is Route.PREFILL


def test_streams_are_packed_onto_the_first_node_within_the_target() -> None:
    cluster = make_cluster(*two_decodes())
    assert Xllm().pick_decode(make_request(), cluster) == "d0"
    assert Xllm(target_tbt_s=0.015).pick_decode(make_request(), cluster) == "d1"
    assert Xllm(target_tbt_s=0.001).pick_decode(make_request(), cluster) == "d1"
