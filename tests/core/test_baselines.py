"""The reference rules, each at the boundary where it changes its mind."""

from __future__ import annotations

import pytest

import strategies as sp
from builders import make_cluster, make_node, make_request
from spillway.core.baselines import LeastLoaded, RoundRobin, Threshold
from spillway.core.decide import Decision, Reason, Route
from spillway.core.placement import budget_s, safe_plan
from spillway.core.ttft import OUTPUT_TOKENS_DEFAULT, decode_side, ttft_via_prefill
from spillway.core.types import ChunkMode, ClusterView, NodeView, Role


def prefill_node(node_id: str = "p0", backlog_tokens: int = 0, **changes: object) -> NodeView:
    node = make_node(node_id, Role.PREFILL, **changes)
    if backlog_tokens:
        sp.load_backlog(node, 1, backlog_tokens, 0.0)
    return node


# --- round-robin -----------------------------------------------------------------------------


def test_round_robin_takes_the_usable_nodes_in_turn() -> None:
    nodes = [prefill_node(f"p{at}", usable=at != 1) for at in range(3)]
    nodes += [make_node(f"d{at}") for at in range(2)]
    turns = []
    for decisions in range(5):
        decision = RoundRobin().decide(make_request(), make_cluster(*nodes, decisions=decisions))
        assert (decision.route, decision.reason) == (Route.PREFILL, Reason.STATIC)
        turns.append((decision.prefill_node_id, decision.decode_node_id))
    assert turns == [("p0", "d0"), ("p2", "d1"), ("p0", "d0"), ("p2", "d1"), ("p0", "d0")]


def test_round_robin_is_blind_to_load() -> None:
    cluster = make_cluster(prefill_node("p0", 90_000), prefill_node("p1"), make_node())
    assert RoundRobin().decide(make_request(), cluster).prefill_node_id == "p0"


# --- least-loaded ----------------------------------------------------------------------------


def test_least_loaded_takes_the_node_that_would_finish_first_and_says_when() -> None:
    request = make_request()
    p1, d1 = prefill_node("p1", 1000), make_node("d1", decode_seqs=3, kv_used_tokens=4000)
    d0 = make_node("d0", decode_seqs=80, kv_used_tokens=90_000)
    decision = LeastLoaded().decide(request, make_cluster(prefill_node("p0", 9000), p1, d0, d1))
    side = decode_side(request, d1, min(OUTPUT_TOKENS_DEFAULT, request.output_tokens_max))
    assert (decision.prefill_node_id, decision.decode_node_id) == ("p1", "d1")
    assert decision.estimate == ttft_via_prefill(request, p1, d1, 0.0, side)
    (only,) = decision.candidates
    assert only.verdict is Reason.CHOSEN


def test_inv_16_an_added_idle_decode_node_never_raises_the_estimate() -> None:
    busy = [make_node(f"d{at}", decode_seqs=40, kv_used_tokens=60_000) for at in range(3)]
    for many in range(1, 4):
        nodes = (prefill_node("p0", 5000), *busy[:many])
        before = LeastLoaded().decide(make_request(), make_cluster(*nodes))
        after = LeastLoaded().decide(make_request(), make_cluster(*nodes, make_node("d9")))
        assert after.estimate.total_s <= before.estimate.total_s


@pytest.mark.parametrize("policy", [RoundRobin(), LeastLoaded()])
def test_without_a_decode_node_there_is_nowhere_to_send_the_kv(
    policy: RoundRobin | LeastLoaded,
) -> None:
    decision = policy.decide(make_request(), make_cluster(prefill_node(), make_node(usable=False)))
    assert (decision.route, decision.reason) == (Route.REJECTED, Reason.NO_NODE)


# --- threshold -------------------------------------------------------------------------------


def decide(policy: Threshold, cluster: ClusterView, **changes: object) -> Decision:
    return policy.decide(make_request(**changes), cluster)


@pytest.mark.parametrize(
    ("backlog_tokens", "route", "reason"),
    [
        (0, Route.PREFILL, Reason.NO_PRESSURE),
        (8192, Route.PREFILL, Reason.NO_PRESSURE),
        (8193, Route.DEFLECTED, Reason.PREFILL_BUSY),
    ],
)
def test_a_backlog_above_the_threshold_is_deflected(
    backlog_tokens: int, route: Route, reason: Reason
) -> None:
    decision = decide(Threshold(), make_cluster(prefill_node("p0", backlog_tokens), make_node()))
    assert (decision.route, decision.reason) == (route, reason)


def test_the_backlog_that_counts_is_that_of_the_node_it_would_go_to() -> None:
    cluster = make_cluster(prefill_node("p0", 90_000), prefill_node("p1", 100), make_node())
    assert decide(Threshold(), cluster).prefill_node_id == "p1"


@pytest.mark.parametrize(
    ("prompt_tokens", "cached_tokens", "deflected"),
    [(512, 0, True), (513, 0, False), (2000, 1488, True), (2000, 1487, False)],
)
def test_a_short_uncached_prompt_is_deflected(
    prompt_tokens: int, cached_tokens: int, deflected: bool
) -> None:
    policy = Threshold(backlog_tokens_min=0, prompt_tokens_max=512)
    cluster = make_cluster(prefill_node("p0", 90_000), make_node())
    decision = decide(
        policy,
        cluster,
        prompt_tokens=prompt_tokens,
        cached_tokens_by_node=(("d0", cached_tokens),),
    )
    assert (decision.route is Route.DEFLECTED) == deflected
    assert decision.reason is (Reason.SHORT_PROMPT if deflected else Reason.NO_PRESSURE)


@pytest.mark.parametrize(
    ("backlog_tokens", "prompt_tokens", "both", "deflected"),
    [
        (9000, 100, True, True),
        (9000, 5000, True, False),
        (10, 100, True, False),
        (9000, 5000, False, True),
        (10, 100, False, True),
        (10, 5000, False, False),
    ],
)
def test_the_two_thresholds_are_joined_by_or_unless_both_is_set(
    backlog_tokens: int, prompt_tokens: int, both: bool, deflected: bool
) -> None:
    policy = Threshold(backlog_tokens_min=8192, prompt_tokens_max=512, both=both)
    cluster = make_cluster(prefill_node("p0", backlog_tokens), make_node())
    decision = decide(policy, cluster, prompt_tokens=prompt_tokens)
    assert (decision.route is Route.DEFLECTED) == deflected


def test_it_deflects_over_the_residents_target_because_it_knows_no_step_times() -> None:
    decode = make_node(decode_seqs=60, kv_used_tokens=250_000, tbt_s_min=0.03)
    assert safe_plan(make_request(), decode) is None
    decision = decide(Threshold(), make_cluster(prefill_node("p0", 90_000), decode))
    assert decision.route is Route.DEFLECTED
    assert decision.plan is not None
    assert decision.plan.step_s_max > budget_s(decode)
    assert not decision.execute_plan
    assert [one.verdict for one in decision.candidates] == [Reason.SLOWER, Reason.CHOSEN]


@pytest.mark.parametrize(
    ("changes", "veto"),
    [
        ({"kv_capacity_tokens": 1000}, Reason.KV_VETO),
        ({"chunk_mode": ChunkMode.UNKNOWN}, Reason.STALE_VETO),
        ({"over_budget": True}, Reason.TBT_VETO),
        # Not even one chunk may be as small as a step of it has to be.
        ({"chunk_tokens_max": 32, "chunk_tokens_multiple": 64}, Reason.TBT_VETO),
    ],
)
def test_state_and_kv_still_veto(changes: dict[str, object], veto: Reason) -> None:
    cluster = make_cluster(prefill_node("p0", 90_000), make_node(**changes))
    decision = decide(Threshold(), cluster)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    assert [one.verdict for one in decision.candidates] == [Reason.CHOSEN, veto]
