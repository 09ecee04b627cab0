"""Placements as a whole: all of them, cut where there are many; and the soonest of them."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

import strategies as sp
from builders import make_cluster, make_request
from fleets import decode_node, prefill_node
from spillway.core.decide import Reason, Route
from spillway.core.policies.joint import LeastTtft, placements
from spillway.core.types import ChunkMode, ClusterView, RequestView


def test_every_pair_and_every_deflection_is_a_placement() -> None:
    nodes = [prefill_node("p0"), prefill_node("p1", usable=False), prefill_node("p2")]
    nodes += [decode_node("d0"), decode_node("d1", over_budget=True), decode_node("d2")]
    found, vetoed = placements(make_request(), make_cluster(*nodes), 8)
    ways = [(one.prefill and one.prefill.node_id, one.decode.node_id) for one in found]
    pairs = [(p, d) for d, p in product(("d0", "d1", "d2"), ("p0", "p2"))]
    assert ways == [*pairs, (None, "d0"), (None, "d2")]
    assert [(one.decode_node_id, one.verdict) for one in vetoed] == [("d1", Reason.TBT_VETO)]


def test_a_large_fleet_is_cut_to_its_most_promising_nodes() -> None:
    nodes = [prefill_node(f"p{at}", 1000 * (9 - at)) for at in range(9)]
    nodes += [decode_node(f"d{at}", 5 * (9 - at)) for at in range(9)]
    found, _ = placements(make_request(), make_cluster(*nodes), 2)
    assert {one.prefill.node_id for one in found if one.prefill} == {"p7", "p8"}
    assert {one.decode.node_id for one in found} == {"d7", "d8"}
    assert len(found) == 6


@given(sp.situations(), st.sampled_from((2, 8)))
def test_the_decision_is_the_least_of_all_estimates(
    situation: tuple[RequestView, ClusterView], nodes_max: int
) -> None:
    request, cluster = situation
    decision = LeastTtft(nodes_max=nodes_max).decide(request, cluster)
    totals_s = [one.estimate.total_s for one in decision.candidates if one.estimate]
    if decision.route is not Route.REJECTED:
        assert decision.estimate.total_s == min(totals_s)


def test_it_takes_the_decode_path_at_the_residents_cost() -> None:
    crowded = decode_node(
        "d0", 60, kv_used_tokens=250_000, tbt_s_min=0.03, chunk_mode=ChunkMode.STATIC
    )
    decision = LeastTtft().decide(make_request(), make_cluster(prefill_node("p0", 90_000), crowded))
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.BEST_SCORE)
    assert decision.plan is not None
    assert decision.plan.step_s_max > crowded.tbt_s_min


def test_an_idle_prefill_pool_wins_when_the_decode_path_is_slower() -> None:
    decision = LeastTtft().decide(
        make_request(prompt_tokens=6000), make_cluster(prefill_node(), decode_node("d0", 60))
    )
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.FASTER_ON_PREFILL)


def test_kv_goes_where_the_first_token_comes_soonest() -> None:
    full = decode_node("d0", 1, kv_used_tokens=399_000)
    cluster = make_cluster(full, decode_node("d1", 60))
    assert LeastTtft().pick_decode(make_request(), cluster) == "d1"
