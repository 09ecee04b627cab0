"""TaiChi, its prefill half: by length among those in time, and whoever is in time."""

from __future__ import annotations

from typing import Any

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies.taichi import TaichiLite
from spillway.core.types import ChunkMode, NodeView

LATE_TOKENS = 22_000  # about 2 s


def decide(*nodes: NodeView, **request: Any) -> Decision:
    return TaichiLite().decide(make_request(**request), make_cluster(*nodes))


@pytest.mark.parametrize(
    ("prompt_tokens", "backlog_tokens", "route", "reason"),
    [
        (1024, 0, Route.DEFLECTED, Reason.SHORT_PROMPT),
        (1025, 0, Route.PREFILL, Reason.NO_PRESSURE),
        (1025, LATE_TOKENS, Route.DEFLECTED, Reason.PREFILL_BUSY),
    ],
)
def test_short_prompts_prefer_decode_nodes_and_long_ones_prefill_nodes_in_time(
    prompt_tokens: int, backlog_tokens: int, route: Route, reason: Reason
) -> None:
    decision = decide(
        prefill_node("p0", backlog_tokens), decode_node("d0", 5), prompt_tokens=prompt_tokens
    )
    assert (decision.route, decision.reason) == (route, reason)


@pytest.mark.parametrize("prompt_tokens", [100, 5000])
def test_a_prompt_goes_to_the_other_kind_when_its_own_is_late(prompt_tokens: int) -> None:
    late = prefilling(decode_node("d0", 5), 9000, seconds=2.0)
    decision = decide(prefill_node(), late, prompt_tokens=prompt_tokens)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_PRESSURE)


@pytest.mark.parametrize(("seconds", "route"), [(1.5, Route.DEFLECTED), (2.5, Route.PREFILL)])
def test_when_nobody_is_in_time_the_soonest_is_taken(seconds: float, route: Route) -> None:
    late = prefilling(decode_node("d0", 5), 9000, seconds=seconds)
    assert decide(prefill_node("p0", LATE_TOKENS), late).route is route


def test_the_chunk_is_fixed_and_sent_along() -> None:
    decision = decide(prefill_node(), decode_node("d0", 5), prompt_tokens=1000)
    assert decision.plan is not None
    assert decision.plan.chunks == ((512, 1), (488, 1))
    assert decision.execute_plan


def test_a_stock_engine_keeps_its_own_chunk() -> None:
    stock = decode_node("d0", 5, chunk_mode=ChunkMode.STATIC, chunk_tokens_max=300)
    decision = decide(prefill_node(), stock, prompt_tokens=1000)
    assert decision.plan is not None
    assert decision.plan.chunks == ((300, 3), (100, 1))
    assert not decision.execute_plan


def test_without_a_node_that_may_take_it_nothing_is_deflected() -> None:
    decision = decide(prefill_node("p0", LATE_TOKENS), decode_node(kv_capacity_tokens=0))
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
