"""PPD: first turns, short later turns, and long ones that pay or do not."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies.ppd import Ppd
from spillway.core.types import NodeView


def decide(
    policy: Ppd, *nodes: NodeView, prompt_tokens: int = 8000, cached_tokens: int = 0
) -> Decision:
    request = make_request(
        prompt_tokens=prompt_tokens,
        output_tokens_max=100,
        cached_tokens_by_node=(("d1", cached_tokens),),
    )
    return policy.decide(request, make_cluster(*nodes))


def test_a_first_turn_uses_the_prefill_pool_however_short_and_however_busy() -> None:
    nodes = (prefill_node("p0", 90_000), decode_node("d0"), decode_node("d1"))
    decision = decide(Ppd(), *nodes, prompt_tokens=10)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_PRESSURE)


@pytest.mark.parametrize(("cached_tokens", "appended"), [(7489, True), (7488, False)])
def test_a_later_turn_with_few_new_tokens_runs_where_its_context_is(
    cached_tokens: int, appended: bool
) -> None:
    nodes = (prefill_node(), decode_node("d0"), decode_node("d1", 30))
    decision = decide(Ppd(tbt_factor=100.0), *nodes, cached_tokens=cached_tokens)
    assert (decision.route is Route.DEFLECTED) == appended
    if appended:
        assert (decision.decode_node_id, decision.reason) == ("d1", Reason.SHORT_PROMPT)
    else:
        assert decision.reason is Reason.FASTER_ON_PREFILL


def test_a_long_later_turn_runs_there_if_the_gain_outweighs_the_harm() -> None:
    nodes = (prefill_node("p0", 20_000), decode_node("d0"), decode_node("d1", 30))
    decision = decide(Ppd(), *nodes, cached_tokens=4000)
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.BEST_SCORE)
    assert decide(Ppd(tbt_factor=100.0), *nodes, cached_tokens=4000).route is Route.PREFILL
    assert decide(Ppd(ttft_factor=0.0), *nodes, cached_tokens=4000).route is Route.PREFILL


def test_on_a_node_without_streams_only_the_gain_counts() -> None:
    nodes = (prefill_node(), decode_node("d1"))
    assert decide(Ppd(tbt_factor=100.0), *nodes, cached_tokens=4000).route is Route.DEFLECTED


def test_a_veto_sends_a_later_turn_to_the_prefill_pool() -> None:
    nodes = (prefill_node("p0", 20_000), decode_node("d0"), decode_node("d1", over_budget=True))
    for cached_tokens in (7990, 4000):
        assert decide(Ppd(), *nodes, cached_tokens=cached_tokens).route is Route.PREFILL
