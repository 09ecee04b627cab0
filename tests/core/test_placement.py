"""Where work may go: each veto at its boundary, each ranking against a plain search."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as sp
from builders import A100_8B, make_cluster, make_node, make_request
from spillway.core.chunks import STEP_TOLERANCE_S
from spillway.core.decide import Candidate, Reason, Route
from spillway.core.latency import step_s
from spillway.core.placement import (
    KV_WATERMARK_FRAC,
    budget_s,
    deflect_or_reject,
    kv_veto,
    least_loaded_decode,
    mark_chosen,
    output_tokens_expected,
    plan_within,
    safe_plan,
    soonest_prefill,
    state_veto,
)
from spillway.core.ttft import OUTPUT_TOKENS_DEFAULT, execute_on_prefill_s
from spillway.core.types import ChunkMode, ClusterView, NodeView, RequestView, Role

# --- state -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "veto"),
    [
        ({}, None),
        ({"usable": False}, Reason.NODE_DOWN),
        ({"chunk_mode": ChunkMode.UNKNOWN}, Reason.STALE_VETO),
        ({"reporting": False}, Reason.STALE_VETO),
        ({"heard_at_s": 8.9}, Reason.STALE_VETO),
        ({"heard_at_s": 9.0}, None),  # exactly as old as is allowed
        ({"over_budget": True}, Reason.TBT_VETO),
        ({"backlog_until_s": inf}, Reason.TBT_VETO),  # what is queued there has no safe chunk
        ({"chunk_mode": ChunkMode.STATIC, "reporting": False}, None),  # a stock engine is mute
        ({"chunk_mode": ChunkMode.STATIC, "heard_at_s": 8.9}, Reason.STALE_VETO),
    ],
)
def test_what_forbids_every_deflection_to_a_node(
    changes: dict[str, object], veto: Reason | None
) -> None:
    node = make_node(**{"heard_at_s": 10.0, **changes})
    assert state_veto(node, make_cluster(node, now_s=10.0, report_age_max_s=1.0)) is veto


# --- KV room ---------------------------------------------------------------------------------


def test_kv_admission_counts_the_prompt_its_answer_and_half_the_neighbours_growth() -> None:
    request = make_request(prompt_tokens=1000)
    # 1000 + 200 of its own, 20 neighbours that each grow by 100 on average, 5000 resident.
    need = 1000 + 200 + 20 * 200 // 2 + 5000
    room = need / KV_WATERMARK_FRAC
    node = make_node(decode_seqs=20, kv_used_tokens=5000, kv_capacity_tokens=int(room) + 2)
    assert not kv_veto(request, node, 200)
    node.kv_capacity_tokens = int(room) - 2
    assert kv_veto(request, node, 200)


def test_an_unknown_kv_capacity_is_a_veto() -> None:
    assert kv_veto(make_request(prompt_tokens=1), make_node(kv_capacity_tokens=0), 1)


def test_the_answer_is_expected_as_long_as_learned_but_not_beyond_its_limit() -> None:
    learned = make_cluster(output_tokens_by_class={"chat": 300})
    assert output_tokens_expected(make_request(class_name="chat"), learned) == 100
    unlimited = make_request(class_name="chat", output_tokens_max=0)
    assert output_tokens_expected(unlimited, learned) == 300
    other = make_request(class_name="code", output_tokens_max=0)
    assert output_tokens_expected(other, learned) == OUTPUT_TOKENS_DEFAULT


# --- the time budget -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "limit_s"),
    [
        ({}, inf),  # nobody to protect
        ({"decode_seqs": 1, "tbt_s_min": 0.05}, 0.045),
        ({"backlog_prompts": 1, "tbt_s_min": 0.05}, 0.045),
        ({"decode_seqs": 1, "tbt_s_min": inf}, inf),
        ({"decode_seqs": 1, "tbt_s_min": 0.05, "tbt_margin_frac": 1.0}, 0.05),
    ],
)
def test_the_budget_is_a_share_of_the_strictest_residents_target(
    changes: dict[str, object], limit_s: float
) -> None:
    assert budget_s(make_node(**changes)) == pytest.approx(limit_s)


def test_a_safe_plan_starts_behind_the_cached_prefix() -> None:
    request = make_request(prompt_tokens=3000, cached_tokens_by_node=(("d0", 2500),))
    plan = safe_plan(request, make_node(decode_seqs=4, kv_used_tokens=9000, tbt_s_min=0.06))
    assert plan is not None
    assert plan.tokens == 500
    assert plan.execute_s == pytest.approx(step_s(A100_8B, 4, 9000, 500, 2500))


def test_prompts_ahead_count_as_streams_of_the_batch() -> None:
    """They will be decoding when it matters."""
    request = make_request(prompt_tokens=300)
    plan = safe_plan(request, make_node(backlog_prompts=5, kv_used_tokens=9000, tbt_s_min=0.06))
    assert plan is not None
    assert plan.execute_s == pytest.approx(step_s(A100_8B, 5, 9000, 300, 0))


def static_node(**changes: object) -> NodeView:
    return make_node(chunk_mode=ChunkMode.STATIC, decode_seqs=20, kv_used_tokens=20_000, **changes)


def test_on_a_stock_engine_only_its_own_chunk_size_counts() -> None:
    request = make_request(prompt_tokens=2000)
    budget = {"tbt_s_min": 0.06, "tbt_margin_frac": 1.0}
    small = safe_plan(request, static_node(chunk_tokens_max=512, **budget))
    assert small is not None
    assert small.chunks == ((512, 3), (464, 1))
    assert safe_plan(request, static_node(chunk_tokens_max=2048, **budget)) is None
    unguarded = plan_within(request, static_node(chunk_tokens_max=2048, **budget), 0.06)
    assert unguarded is not None
    assert unguarded.chunks == ((2000, 1),)


@pytest.mark.slow
@given(sp.situations())
def test_inv_4_a_safe_plan_keeps_every_step_within_the_budget(
    situation: tuple[RequestView, ClusterView],
) -> None:
    request, cluster = situation
    for node in cluster.decode:
        plan = safe_plan(request, node)
        if plan is not None:
            assert plan.step_s_max <= budget_s(node) + 1.001 * STEP_TOLERANCE_S
            assert plan.tokens == request.uncached_tokens(node.node_id)


# --- rankings --------------------------------------------------------------------------------


@pytest.mark.slow
@given(sp.situations())
def test_the_least_loaded_decode_node_is_that_of_a_plain_search(
    situation: tuple[RequestView, ClusterView],
) -> None:
    request, cluster = situation

    def key(node: NodeView) -> tuple[bool, float, str]:
        kv_tokens = node.kv_used_tokens + request.prompt_tokens
        next_s = step_s(node.spec.profile, node.decode_seqs + 1, kv_tokens)
        if node.backlog_prompts:
            target_s = min(node.tbt_s_min, request.slo.tbt_s)
            next_s = max(next_s, target_s * node.spec.tbt_margin_frac)
        full = 0 < node.kv_capacity_tokens < kv_tokens
        return full, next_s, node.node_id

    usable = [node for node in cluster.decode if node.usable]
    assert least_loaded_decode(request, cluster) is min(usable, key=key, default=None)


def test_equal_decode_nodes_are_taken_by_their_id() -> None:
    cluster = make_cluster(make_node("d0"), make_node("d1"))
    found = least_loaded_decode(make_request(), cluster)
    assert found is not None
    assert found.node_id == "d0"


def test_without_any_target_a_usable_decode_node_is_still_found() -> None:
    node = make_node(backlog_prompts=1, tbt_s_min=inf)
    assert least_loaded_decode(make_request(tbt_s=inf), make_cluster(node)) is node


@pytest.mark.slow
@given(sp.situations())
def test_the_soonest_prefill_node_is_that_of_a_plain_search(
    situation: tuple[RequestView, ClusterView],
) -> None:
    request, cluster = situation
    usable = [node for node in cluster.prefill if node.usable]
    done_s = {
        node.node_id: max(node.backlog_until_s, cluster.now_s) + execute_on_prefill_s(request, node)
        for node in usable
    }
    expected = min(usable, key=lambda node: (done_s[node.node_id], node.node_id), default=None)
    assert soonest_prefill(request, cluster) is expected


def test_mixed_hardware_is_weighed_by_seconds_and_not_by_tokens() -> None:
    slow = make_node("p0", Role.PREFILL, step_tokens_max=64)
    fast = make_node("p1", Role.PREFILL)
    sp.load_backlog(slow, 1, 2000, 0.0)
    sp.load_backlog(fast, 1, 3000, 0.0)
    found = soonest_prefill(make_request(prompt_tokens=2000), make_cluster(slow, fast, make_node()))
    assert found is fast


# --- the last resort -------------------------------------------------------------------------


def test_without_prefill_nodes_the_soonest_safe_decode_node_takes_it() -> None:
    busy = make_node("d0", decode_seqs=60, kv_used_tokens=90_000, tbt_s_min=0.06)
    decision = deflect_or_reject(make_request(), make_cluster(busy, make_node("d1")))
    assert decision.route is Route.DEFLECTED
    assert decision.reason is Reason.PREFILL_DOWN
    assert decision.decode_node_id == "d1"
    assert [one.verdict for one in decision.candidates] == [Reason.SLOWER, Reason.CHOSEN]


def test_without_any_safe_node_the_request_is_rejected_and_each_veto_told() -> None:
    nodes = (
        make_node("d0", usable=False),
        make_node("d1", kv_capacity_tokens=100),
        make_node("d2", decode_seqs=64, kv_used_tokens=300_000, tbt_s_min=0.02),
        make_node("d3", reporting=False),
    )
    decision = deflect_or_reject(make_request(), make_cluster(*nodes))
    assert decision.route is Route.REJECTED
    assert decision.reason is Reason.NO_NODE
    assert [one.verdict for one in decision.candidates] == [
        Reason.NODE_DOWN,
        Reason.KV_VETO,
        Reason.TBT_VETO,
        Reason.STALE_VETO,
    ]


@given(st.integers(0, 3))
def test_marking_the_chosen_one_leaves_the_others(at: int) -> None:
    candidates = [Candidate(None, f"d{i}", None, Reason.SLOWER) for i in range(4)]
    marked = mark_chosen(candidates, None, f"d{at}")
    verdicts = [Reason.SLOWER] * 4
    verdicts[at] = Reason.CHOSEN
    assert [one.verdict for one in marked] == verdicts
