"""The printed rule, word by word, and the switches for what the paper leaves open."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

import strategies as sp
from builders import A100_8B, make_cluster, make_node, make_profile, make_request
from spillway.core.chunks import plan_from_sizes
from spillway.core.decide import Candidate, Decision, Reason, Route
from spillway.core.kairos import KairosPaper
from spillway.core.latency import prefill_s, token_pairs
from spillway.core.placement import safe_plan
from spillway.core.types import ChunkMode, ClusterView, NodeView, Role

SIZES = KairosPaper().sizes_tokens
# A public study's additive law of a 70B model on H100, TP4: the numbers that the literal reading
# of Eq. 2 was tabulated with. The step times are its own affair; the shape of the rule is tested.
H100_70B = make_profile(
    name="h100-70b",
    step_base_s=16.61e-3,
    token_hinges=(0,),
    token_s=(6.14e-6,),
    kv_token_s=0.0476e-6,
    token_pair_s=1.0e-10,
)


def fleet(prefill_backlog_tokens: int = 0, **decode: object) -> ClusterView:
    prefill = make_node("p0", Role.PREFILL)
    if prefill_backlog_tokens:
        sp.load_backlog(prefill, 1, prefill_backlog_tokens, 0.0)
    return make_cluster(prefill, make_node("d0", **decode))


def remote_of(decision: Decision) -> Candidate:
    return decision.candidates[0]


# --- Eq. 1 and 2 -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backlog_tokens", "prompt_tokens", "literal_ms", "unclamped_ms", "exact_ms"),
    [
        (8_000, 128, 1_091, 118, 117),
        (8_000, 1_000, 186, 118, 117),
        (8_000, 4_000, 118, 118, 117),
        (40_000, 128, 5_520, 655, 583),
        (40_000, 1_000, 993, 655, 583),
        (40_000, 4_000, 655, 655, 583),
        (100_000, 128, 14_102, 1_940, 1_456),
        (100_000, 1_000, 2_785, 1_940, 1_456),
        (400_000, 128, 62_451, 13_805, 5_825),
        (400_000, 1_000, 17_185, 13_805, 5_825),
    ],
)
def test_the_literal_queue_estimate_is_off_by_what_its_clamp_makes_of_it(
    backlog_tokens: int,
    prompt_tokens: int,
    literal_ms: float,
    unclamped_ms: float,
    exact_ms: float,
) -> None:
    """Backlogs of prompts of 4000: a short prompt sees a queue ten times as long as it is."""
    prefill = make_node("p0", Role.PREFILL, profile=H100_70B)
    sp.load_backlog(prefill, backlog_tokens // 4000, 4000, 0.0)
    cluster = make_cluster(prefill, make_node(profile=H100_70B, over_budget=True))
    request = make_request(prompt_tokens=prompt_tokens)

    def queue_ms(policy: KairosPaper) -> float:
        estimate = remote_of(policy.decide(request, cluster)).estimate
        assert estimate is not None
        return estimate.queue_s * 1e3

    assert queue_ms(KairosPaper()) == pytest.approx(literal_ms, rel=0.01)
    assert queue_ms(KairosPaper(clamp_chunk=False)) == pytest.approx(unclamped_ms, rel=0.01)
    assert prefill.backlog_until_s * 1e3 == pytest.approx(exact_ms, rel=0.01)


@pytest.mark.parametrize("prompt_tokens", [1, 2048, 2049, 9000])
def test_the_printed_execution_is_that_of_full_steps_and_a_rest(prompt_tokens: int) -> None:
    request = make_request(prompt_tokens=prompt_tokens)
    estimate = remote_of(KairosPaper().decide(request, fleet())).estimate
    assert estimate is not None
    pairs = token_pairs(prompt_tokens, 0)
    chunk = min(2048, prompt_tokens)
    assert estimate.execute_s == pytest.approx(prefill_s(A100_8B, prompt_tokens, pairs, chunk))
    assert (estimate.transfer_s, estimate.admission_s, estimate.first_step_s) == (0.0, 0.0, 0.0)


def test_the_printed_estimate_gives_no_credit_for_a_cached_prefix() -> None:
    cached = (("p0", 1900), ("d0", 1900))
    plain = KairosPaper().decide(make_request(), fleet())
    with_cache = KairosPaper().decide(make_request(cached_tokens_by_node=cached), fleet())
    assert with_cache == plain


# --- the rule: alpha, the target, what is feasible -------------------------------------------


def test_an_idle_decode_node_wins_even_though_nobody_waits() -> None:
    """Within 1.3 of an idle prefill node for most states: the rule deflects at light load."""
    decision = KairosPaper().decide(
        make_request(), fleet(decode_seqs=8, kv_used_tokens=12_000, tbt_s_min=0.2)
    )
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.FASTER_ON_DECODE)
    assert decision.execute_plan
    assert [one.verdict for one in decision.candidates] == [Reason.SLOWER, Reason.CHOSEN]


def test_alpha_is_the_share_by_which_the_decode_path_may_be_slower() -> None:
    cluster = fleet(decode_seqs=60, kv_used_tokens=90_000, tbt_s_min=0.1)
    decision = KairosPaper(alpha=1.0).decide(make_request(), cluster)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.FASTER_ON_PREFILL)
    remote, local = decision.candidates
    assert remote.estimate is not None
    assert local.estimate is not None
    ratio = local.estimate.total_s / remote.estimate.total_s
    assert ratio > 1
    at_ratio = KairosPaper(alpha=ratio * (1 + 1e-9)).decide(make_request(), cluster)
    assert at_ratio.route is Route.DEFLECTED
    below = KairosPaper(alpha=ratio * (1 - 1e-9)).decide(make_request(), cluster)
    assert below.route is Route.PREFILL


def test_the_requests_own_target_is_a_condition_even_against_a_worse_prefill_path() -> None:
    cluster = fleet(50_000, decode_seqs=8, kv_used_tokens=12_000, tbt_s_min=0.2)
    meets = KairosPaper().decide(make_request(), cluster)
    assert meets.route is Route.DEFLECTED
    target_s = meets.estimate.total_s
    assert KairosPaper().decide(make_request(ttft_s=target_s), cluster).route is Route.DEFLECTED
    misses = KairosPaper().decide(make_request(ttft_s=target_s * (1 - 1e-9)), cluster)
    assert (misses.route, misses.reason) == (Route.PREFILL, Reason.TTFT_VETO)


def test_beta_scales_the_strictest_residents_target() -> None:
    cluster = fleet(decode_seqs=30, kv_used_tokens=60_000, tbt_s_min=0.05)
    for beta in (0.6, 1.0, 1.2):
        decision = KairosPaper(beta=beta, alpha=100.0).decide(make_request(ttft_s=9.0), cluster)
        expected = plan_from_sizes(A100_8B, 30, 60_000, 2000, beta * 0.05, SIZES)
        assert decision.plan == expected
        assert expected is not None
        assert expected.step_s_max <= beta * 0.05


def test_the_arriving_target_counts_on_an_empty_node_alone() -> None:
    request = make_request(tbt_s=0.03, ttft_s=9.0)
    on_empty = KairosPaper(alpha=100.0).decide(request, fleet())
    assert on_empty.plan == plan_from_sizes(A100_8B, 0, 0, 2000, 0.03, SIZES)
    busy = fleet(decode_seqs=2, kv_used_tokens=3000, tbt_s_min=0.2)
    on_busy = KairosPaper(alpha=100.0).decide(request, busy)
    assert on_busy.plan == plan_from_sizes(A100_8B, 2, 3000, 2000, 0.2, SIZES)


def test_no_profiled_size_fits_and_nothing_smaller_is_tried() -> None:
    cluster = fleet(50_000, decode_seqs=64, kv_used_tokens=150_000, tbt_s_min=0.028)
    decision = KairosPaper().decide(make_request(), cluster)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    assert decision.candidates[1].verdict is Reason.TBT_VETO
    finer = KairosPaper(sizes_tokens=(128, 16)).decide(make_request(ttft_s=60.0), cluster)
    assert finer.candidates[1].verdict is not Reason.TBT_VETO


def test_one_deflected_prompt_excludes_the_next_unless_switched_off() -> None:
    pending = {"backlog_prompts": 1, "backlog_tokens": 10, "tbt_s_min": 0.2}
    cluster = fleet(50_000, decode_seqs=2, kv_used_tokens=3000, **pending)
    decision = KairosPaper().decide(make_request(), cluster)
    assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
    assert decision.candidates[1].verdict is Reason.CAP_VETO
    lifted = KairosPaper(exclusive=False).decide(make_request(), cluster)
    assert lifted.route is Route.DEFLECTED


def test_the_best_feasible_decode_node_is_the_one_with_the_shortest_schedule() -> None:
    nodes: list[NodeView] = [
        make_node("d0", decode_seqs=40, kv_used_tokens=50_000, tbt_s_min=0.2),
        make_node("d1", decode_seqs=10, kv_used_tokens=10_000, tbt_s_min=0.2),
        make_node("d2", decode_seqs=10, kv_used_tokens=10_000, tbt_s_min=0.2),
        make_node("d3", usable=False),
    ]
    decision = KairosPaper().decide(
        make_request(), make_cluster(make_node("p0", Role.PREFILL), *nodes)
    )
    assert decision.decode_node_id == "d1"  # d2 is as good; ties go by id
    verdicts = [one.verdict for one in decision.candidates[1:]]
    assert verdicts == [Reason.SLOWER, Reason.CHOSEN, Reason.SLOWER, Reason.NODE_DOWN]


def test_of_several_prefill_nodes_the_least_printed_estimate_counts() -> None:
    p0, p1 = make_node("p0", Role.PREFILL), make_node("p1", Role.PREFILL)
    sp.load_backlog(p0, 1, 30_000, 0.0)
    decode = make_node("d0", over_budget=True)
    decision = KairosPaper().decide(make_request(), make_cluster(p0, p1, decode))
    assert decision.prefill_node_id == "p1"
    p1.usable = False
    assert (
        KairosPaper().decide(make_request(), make_cluster(p0, p1, decode)).prefill_node_id == "p0"
    )


def test_kv_room_plays_no_part_in_the_printed_rule() -> None:
    decode = replace(make_node("d0"), kv_capacity_tokens=10)
    cluster = make_cluster(make_node("p0", Role.PREFILL), decode)
    assert KairosPaper().decide(make_request(), cluster).route is Route.DEFLECTED
    assert decode.tbt_s_min == inf


def test_a_stock_engine_follows_no_schedule_so_its_own_setting_must_be_safe() -> None:
    spec = {"chunk_mode": ChunkMode.STATIC, "decode_seqs": 5, "kv_used_tokens": 5000}
    for chunk_tokens, route in ((400, Route.DEFLECTED), (2048, Route.PREFILL)):
        cluster = fleet(50_000, tbt_s_min=0.06, chunk_tokens_max=chunk_tokens, **spec)
        decision = KairosPaper().decide(make_request(), cluster)
        assert decision.route is route
        assert not decision.execute_plan
    assert decision.candidates[1].verdict is Reason.TBT_VETO


def test_closed_loop_the_schedule_is_the_nodes_own_and_the_rest_as_printed() -> None:
    decode = make_node("d0", decode_seqs=20, kv_used_tokens=20_000, tbt_s_min=0.06)
    prefill = make_node("p0", Role.PREFILL)
    sp.load_backlog(prefill, 1, 8000, 0.0)
    cluster = make_cluster(prefill, decode)
    printed = KairosPaper().decide(make_request(), cluster)
    closed = KairosPaper(literal=False).decide(make_request(), cluster)
    assert printed.execute_plan
    assert not closed.execute_plan
    assert closed.plan == safe_plan(make_request(), decode) != printed.plan
    assert closed.candidates[0] == printed.candidates[0]  # the prefill path's printed estimate
    decode.tbt_s_min = 0.01
    assert KairosPaper(literal=False).decide(make_request(), cluster).route is Route.PREFILL
