"""Kairos, adapted: what it knows beyond the printed rule, and the test at its boundaries."""

from __future__ import annotations

from typing import Any

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.kairos import KairosPaper
from spillway.core.policies.kairos_adapted import KairosAdapted
from spillway.core.types import ChunkMode, NodeView


def decide(*nodes: NodeView, options: dict[str, Any] | None = None, **request: Any) -> Decision:
    return KairosAdapted(**(options or {})).decide(make_request(**request), make_cluster(*nodes))


def test_a_queue_is_passed_by_on_an_idle_decode_node() -> None:
    decision = decide(prefill_node("p0", 9000), decode_node("d0", 5))
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.FASTER_ON_DECODE)
    assert not decision.execute_plan
    assert decision.plan is not None
    assert decision.plan.step_s_max <= 0.5 * 0.06


def test_the_transfer_that_the_printed_rule_leaves_out_makes_the_difference() -> None:
    nodes = (prefill_node("p0", link_bytes_per_s=1e9), decode_node())
    request = {"prompt_tokens": 1000}
    assert decide(*nodes, **request).route is Route.DEFLECTED
    printed = KairosPaper(alpha=1.0).decide(make_request(**request), make_cluster(*nodes))
    assert printed.route is Route.PREFILL


def test_a_prefix_that_the_decode_node_holds_makes_the_difference() -> None:
    nodes = (prefill_node("p0", 1500), decode_node("d0", 20))
    assert decide(*nodes, prompt_tokens=8000).route is Route.PREFILL
    held = (("d0", 7900),)
    decision = decide(*nodes, prompt_tokens=8000, cached_tokens_by_node=held)
    assert decision.route is Route.DEFLECTED
    assert decision.plan is not None
    assert decision.plan.tokens == 100


@pytest.mark.parametrize(
    ("changes", "options", "veto"),
    [
        ({"kv_capacity_tokens": 1000}, {}, Reason.KV_VETO),
        ({"tbt_s_min": 0.024}, {}, Reason.TBT_VETO),  # half of it is below any step
        ({"chunk_mode": ChunkMode.STATIC}, {}, Reason.TBT_VETO),
        ({"reporting": False}, {}, Reason.STALE_VETO),
    ],
)
def test_what_makes_a_decode_node_infeasible(
    changes: dict[str, object], options: dict[str, object], veto: Reason
) -> None:
    decision = decide(prefill_node("p0", 90_000), decode_node("d0", 5, **changes), options=options)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    assert decision.candidates[-1].verdict is veto


def test_a_second_prompt_is_deflected_only_without_exclusivity() -> None:
    nodes = (prefill_node("p0", 14_000), prefilling(decode_node("d0", 5), 500, seconds=0.1))
    assert decide(*nodes).candidates[-1].verdict is Reason.CAP_VETO
    assert decide(*nodes, options={"exclusive": False}).route is Route.DEFLECTED


def test_alpha_1_is_strictly_faster_and_more_lets_it_be_slower() -> None:
    nodes = (prefill_node("p0", 1000), decode_node("d0", 20))
    decision = decide(*nodes, prompt_tokens=3000)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.FASTER_ON_PREFILL)
    assert decide(*nodes, prompt_tokens=3000, options={"alpha": 3.0}).route is Route.DEFLECTED


def test_a_prompt_that_would_miss_its_own_target_is_not_deflected() -> None:
    nodes = (prefill_node("p0", 90_000), decode_node("d0", 20))
    decision = decide(*nodes, prompt_tokens=20_000, ttft_s=0.5)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.TTFT_VETO)


def test_an_empty_node_protects_the_class_that_arrives() -> None:
    decision = decide(prefill_node("p0", 90_000), decode_node(), tbt_s=0.05)
    assert decision.plan is not None
    assert decision.plan.step_s_max <= 0.5 * 0.05
