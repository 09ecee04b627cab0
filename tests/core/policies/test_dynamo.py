"""Dynamo's three predicates at their boundaries, the router's cost, and the decode veto."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies import build_policy

ISL, LOAD, EITHER = "dynamo-isl-bounding", "dynamo-prefill-load", "dynamo-isl-or-load"


def decide(
    name: str, backlog_tokens: int, prompt_tokens: int, cached_tokens: int, **options: object
) -> Decision:
    cluster = make_cluster(prefill_node("p0", backlog_tokens), decode_node())
    request = make_request(
        prompt_tokens=prompt_tokens, cached_tokens_by_node=(("d0", cached_tokens),)
    )
    return build_policy(name, options).decide(request, cluster)


@pytest.mark.parametrize(
    ("prompt_tokens", "cached_tokens", "deflected"),
    [
        (1000, 301, True),  # 699 of 1000 are new: below the share of 0.7
        (1000, 300, False),  # exactly the share
        (500, 0, False),  # short, but all of it is new
        (8000, 5953, True),  # 2047 are new: below the limit
        (8000, 5952, False),
    ],
)
def test_isl_bounding_asks_for_few_new_tokens_and_a_small_share(
    prompt_tokens: int, cached_tokens: int, deflected: bool
) -> None:
    decision = decide(ISL, 90_000, prompt_tokens, cached_tokens)
    assert (decision.route is Route.DEFLECTED) == deflected
    assert decision.reason is (Reason.SHORT_PROMPT if deflected else Reason.NO_PRESSURE)


@pytest.mark.parametrize(("backlog_tokens", "deflected"), [(8192, False), (8193, True)])
def test_prefill_load_asks_for_a_busy_prefill_node(backlog_tokens: int, deflected: bool) -> None:
    decision = decide(LOAD, backlog_tokens, 4000, 3900)
    assert (decision.route is Route.DEFLECTED) == deflected
    assert decision.reason is (Reason.PREFILL_BUSY if deflected else Reason.NO_PRESSURE)


@pytest.mark.parametrize(
    ("backlog_tokens", "cached_tokens", "reason"),
    [
        (0, 0, Reason.NO_PRESSURE),
        (0, 3000, Reason.SHORT_PROMPT),
        (9000, 0, Reason.PREFILL_BUSY),
        (9000, 3000, Reason.PREFILL_BUSY),
    ],
)
def test_isl_or_load_takes_either(backlog_tokens: int, cached_tokens: int, reason: Reason) -> None:
    assert decide(EITHER, backlog_tokens, 4000, cached_tokens).reason is reason


def test_the_prefill_node_is_that_of_fewest_blocks_less_what_it_holds() -> None:
    cluster = make_cluster(prefill_node("p0", 1000), prefill_node("p1", 2500), decode_node())
    policy = build_policy(LOAD)
    assert policy.decide(make_request(), cluster).prefill_node_id == "p0"
    held = make_request(cached_tokens_by_node=(("p1", 1700),))
    assert policy.decide(held, cluster).prefill_node_id == "p1"


def test_the_decode_node_of_a_deflection_is_that_which_holds_the_prompt() -> None:
    cluster = make_cluster(prefill_node("p0", 90_000), decode_node("d0"), decode_node("d1", 1))
    cached = make_request(cached_tokens_by_node=(("d1", 1990),))
    assert build_policy(LOAD).decide(cached, cluster).decode_node_id == "d1"
    # Once the prompt is prefilled elsewhere, only the blocks in use count.
    assert build_policy(LOAD).pick_decode(cached, cluster) == "d0"


def test_requests_under_way_have_a_price_if_asked_for() -> None:
    many, few = decode_node("d0", 30, kv_used_tokens=1000), decode_node("d1", 2)
    cluster = make_cluster(many, few)
    assert build_policy(LOAD).pick_decode(make_request(), cluster) == "d0"
    assert build_policy(LOAD, {"seq_blocks": 2.0}).pick_decode(make_request(), cluster) == "d1"


@pytest.mark.parametrize(
    ("frac", "kv_capacity_tokens", "vetoed"),
    [
        (0.0, 400_000, False),
        (0.5, 400_000, False),
        (0.49, 400_000, True),
        (0.9, 0, True),  # an unknown capacity fails closed
    ],
)
def test_a_decode_node_whose_kv_would_be_too_full_vetoes(
    frac: float, kv_capacity_tokens: int, vetoed: bool
) -> None:
    decode = decode_node("d0", 20, kv_used_tokens=198_000, kv_capacity_tokens=kv_capacity_tokens)
    cluster = make_cluster(prefill_node("p0", 90_000), decode)
    decision = build_policy(LOAD, {"decode_busy_frac": frac}).decide(make_request(), cluster)
    assert (decision.route is Route.PREFILL) == vetoed
    if vetoed:
        assert decision.reason is Reason.NO_SAFE_DECODE_NODE
        assert [one.verdict for one in decision.candidates] == [Reason.CHOSEN, Reason.KV_VETO]
