"""TTFT by both paths: each part for itself, how the parts overlap, and what may only raise them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as sp
from builders import A100_8B, make_node, make_request
from spillway.core.chunks import plan_chunks
from spillway.core.decide import TtftEstimate
from spillway.core.latency import prefill_s, step_s, token_pairs
from spillway.core.ttft import (
    book_transfer,
    decode_side,
    execute_on_prefill_s,
    link_s,
    transfer_bytes,
    ttft_via_decode,
    ttft_via_prefill,
)
from spillway.core.types import NodeView, RequestView, Role

NOW_S = 10.0
KV_BYTES = A100_8B.kv_bytes_per_token


def prefill_node(**changes: object) -> NodeView:
    return make_node("p0", Role.PREFILL, **changes)


def via_prefill(
    request: RequestView, prefill: NodeView, decode: NodeView, output_tokens: int = 256
) -> TtftEstimate:
    side = decode_side(request, decode, output_tokens)
    return ttft_via_prefill(request, prefill, decode, NOW_S, side)


def alone_s(tokens: int) -> float:
    return prefill_s(A100_8B, tokens, token_pairs(tokens, 0), 2048)


# --- part by part ----------------------------------------------------------------------------


def test_on_idle_nodes_it_is_execution_transfer_and_one_step() -> None:
    estimate = via_prefill(make_request(prompt_tokens=3000), prefill_node(), make_node())
    assert estimate.queue_s == 0.0
    assert estimate.execute_s == pytest.approx(alone_s(3000))
    assert estimate.transfer_s == pytest.approx(0.002 + 3000 * KV_BYTES / 25e9)
    assert estimate.admission_s == 0.0
    assert estimate.first_step_s == pytest.approx(step_s(A100_8B, 1, 3000))
    assert estimate.total_s == pytest.approx(sum(estimate))


def test_the_backlog_is_waited_for_and_shares_its_last_step() -> None:
    """1000 tokens ahead leave half a step of 2048 free, so 500 more cost no further step."""
    node = prefill_node(
        backlog_prompts=1,
        backlog_tokens=1000,
        backlog_token_pairs=token_pairs(1000, 0),
        backlog_until_s=NOW_S + alone_s(1000),
    )
    estimate = via_prefill(make_request(prompt_tokens=500), node, make_node())
    assert estimate.queue_s == pytest.approx(alone_s(1000))
    assert estimate.execute_s < alone_s(500) - A100_8B.step_base_s / 2


def test_a_backlog_predicted_to_be_over_is_no_wait() -> None:
    node = prefill_node(backlog_tokens=10, backlog_until_s=NOW_S - 5)
    assert via_prefill(make_request(), node, make_node()).queue_s == 0.0


def test_a_cached_prefix_is_neither_computed_nor_sent_twice() -> None:
    request = make_request(
        prompt_tokens=3000, cached_tokens_by_node=(("p0", 2000), ("d0", 1500), ("d1", 3000))
    )
    prefill, d0, d1 = prefill_node(), make_node("d0"), make_node("d1")
    expected_s = prefill_s(A100_8B, 1000, token_pairs(1000, 2000), 2048)
    assert execute_on_prefill_s(request, prefill) == pytest.approx(expected_s)
    assert transfer_bytes(request, prefill, d0) == 1500 * KV_BYTES
    assert transfer_bytes(request, prefill, d1) == 1 * KV_BYTES


def test_the_slower_end_of_the_link_sets_its_speed() -> None:
    slow = make_node("d0", link_bytes_per_s=1.25e9, link_base_s=0.005)
    assert link_s(prefill_node(), slow, 1_250_000_000) == pytest.approx(1.005)
    assert link_s(prefill_node(link_bytes_per_s=0.5e9), slow, 1_000_000_000) == pytest.approx(2.005)


def test_a_busy_link_is_waited_for_behind_the_prefill() -> None:
    request = make_request(prompt_tokens=1000)
    own_s = link_s(prefill_node(), make_node(), 1000 * KV_BYTES)
    busy = prefill_node(link_until_s=NOW_S + 2.0)
    estimate = via_prefill(request, busy, make_node())
    assert estimate.transfer_s == pytest.approx(2.0 - estimate.execute_s + own_s)
    soon_free = prefill_node(link_until_s=NOW_S + estimate.execute_s / 2)
    assert via_prefill(request, soon_free, make_node()).transfer_s == pytest.approx(own_s)


def test_the_decode_node_s_link_is_waited_for_as_well() -> None:
    request = make_request(prompt_tokens=1000)
    busy = make_node(link_until_s=NOW_S + 2.0)
    own_s = link_s(prefill_node(), busy, 1000 * KV_BYTES)
    estimate = via_prefill(request, prefill_node(), busy)
    assert estimate.transfer_s == pytest.approx(2.0 - estimate.execute_s + own_s)


def test_a_booking_queues_at_both_ends_and_each_end_works_at_its_own_rate() -> None:
    fast, slow = prefill_node(link_bytes_per_s=2e9), make_node(link_bytes_per_s=1e9)
    other = make_node("d1", link_bytes_per_s=2e9)
    for decode in (slow, slow, other):
        book_transfer(fast, decode, 10**9, NOW_S)
    assert fast.link_until_s == pytest.approx(NOW_S + 3 * 0.502)
    assert slow.link_until_s == pytest.approx(NOW_S + 2 * 1.002)
    assert other.link_until_s == pytest.approx(NOW_S + 3 * 0.502)  # the slow node holds nobody up


def test_on_a_slow_link_the_backlog_queues_for_the_link_and_not_for_the_gpu() -> None:
    """Ten prompts of 2000 tokens take a second to prefill and two to send."""
    node = prefill_node(link_bytes_per_s=1.25e9)
    sp.load_backlog(node, 10, 2000, NOW_S)
    estimate = via_prefill(make_request(), node, make_node())
    sending_s = 20_000 * KV_BYTES / 1.25e9
    own_s = link_s(node, make_node(), 2000 * KV_BYTES)
    assert estimate.queue_s + estimate.execute_s < sending_s
    assert estimate.total_s - estimate.first_step_s == pytest.approx(sending_s + own_s)


def test_a_pull_waits_half_a_step_to_begin_and_half_a_step_to_join() -> None:
    busy = make_node(decode_seqs=40, kv_used_tokens=50_000, tbt_s_min=0.06)
    estimate = via_prefill(make_request(), prefill_node(), busy)
    assert estimate.admission_s == pytest.approx(step_s(A100_8B, 40, 50_000))
    assert estimate.first_step_s == pytest.approx(step_s(A100_8B, 41, 52_000))


def test_a_full_decode_node_is_waited_for_beyond_the_prefill_alone() -> None:
    full = make_node(decode_seqs=40, kv_used_tokens=50_000, kv_capacity_tokens=51_000)
    request = make_request(prompt_tokens=2000)
    estimate = via_prefill(request, prefill_node(), full, output_tokens=2000)
    now_step_s = step_s(A100_8B, 40, 50_000)
    # 1000 tokens lack; all 50 000 are freed in 2000 steps. Only then does the KV move.
    room_s = 1000 * 2000 * now_step_s / 50_000
    ready_s = estimate.queue_s + estimate.execute_s
    assert ready_s < room_s
    assert estimate.admission_s == pytest.approx(room_s - ready_s + now_step_s)
    assert estimate.transfer_s == pytest.approx(link_s(prefill_node(), full, 2000 * KV_BYTES))
    longer = via_prefill(request, prefill_node(), full, output_tokens=20_000)
    assert longer.total_s - estimate.total_s == pytest.approx(9 * room_s)


def test_streams_that_claim_no_kv_are_believed_without_a_division_by_it() -> None:
    odd = make_node(decode_seqs=3, kv_used_tokens=0, kv_capacity_tokens=1000)
    estimate = via_prefill(make_request(prompt_tokens=2000), prefill_node(), odd)
    assert estimate.admission_s >= 0.0


def test_a_deflected_prompt_waits_for_the_deflected_work_ahead_and_moves_nothing() -> None:
    node = make_node(backlog_prompts=1, backlog_until_s=NOW_S + 0.7, tbt_s_min=0.06)
    plan = plan_chunks(A100_8B, 1, 0, 0, 2000, 0.05, 2048, 64)
    assert plan is not None
    estimate = ttft_via_decode(make_request(), node, plan, NOW_S)
    assert estimate == TtftEstimate(pytest.approx(0.7), plan.execute_s, 0.0, 0.0, 0.0)
    assert estimate.total_s == pytest.approx(0.7 + plan.execute_s)


def test_a_deflected_prompt_joins_a_batch_at_the_next_step() -> None:
    node = make_node(decode_seqs=10, kv_used_tokens=9000, backlog_until_s=NOW_S - 1)
    plan = plan_chunks(A100_8B, 10, 9000, 0, 2000, 0.05, 2048, 64)
    assert plan is not None
    estimate = ttft_via_decode(make_request(), node, plan, NOW_S)
    assert estimate.queue_s == 0.0
    assert estimate.admission_s == pytest.approx(0.5 * step_s(A100_8B, 10, 9000))


# --- laws ------------------------------------------------------------------------------------


@pytest.mark.slow
@given(sp.requests(), sp.prefill_nodes(), sp.decode_nodes(), st.integers(1, 4000))
def test_the_parts_overlap_as_printed(
    request: RequestView, prefill: NodeView, decode: NodeView, output_tokens: int
) -> None:
    estimate = via_prefill(request, prefill, decode, output_tokens)
    side = decode_side(request, decode, output_tokens)
    ready_s = estimate.queue_s + estimate.execute_s + estimate.transfer_s
    total_s = max(ready_s, side.kv_wait_s) + side.boundary_s + side.first_step_s
    assert estimate.total_s == pytest.approx(total_s)
    assert all(part_s >= 0.0 for part_s in estimate)


@pytest.mark.slow
@given(sp.requests(), sp.prefill_nodes(), sp.decode_nodes(), st.integers(1, 5000))
def test_inv_16_a_longer_prompt_never_lowers_the_prefill_path(
    request: RequestView, prefill: NodeView, decode: NodeView, more_tokens: int
) -> None:
    longer = request._replace(prompt_tokens=request.prompt_tokens + more_tokens)
    shorter_s = via_prefill(request, prefill, decode).total_s
    assert via_prefill(longer, prefill, decode).total_s >= shorter_s - 1e-9


@pytest.mark.slow
@given(
    sp.requests(),
    sp.prefill_nodes(),
    sp.decode_nodes(),
    st.integers(1, 6),
    st.integers(1, 9000),
    st.integers(0, 5),
)
def test_inv_16_a_longer_backlog_never_lowers_the_prefill_path(
    request: RequestView,
    prefill: NodeView,
    decode: NodeView,
    prompts: int,
    tokens_each: int,
    more: int,
) -> None:
    longer = replace(prefill)
    sp.load_backlog(prefill, prompts, tokens_each, NOW_S)
    sp.load_backlog(longer, prompts + more, tokens_each, NOW_S)
    shorter_s = via_prefill(request, prefill, decode).total_s
    assert via_prefill(request, longer, decode).total_s >= shorter_s - 1e-9


@pytest.mark.slow
@given(sp.requests(), sp.prefill_nodes(), sp.decode_nodes(), st.floats(1.0, 100.0))
def test_inv_16_a_slower_link_never_lowers_the_prefill_path(
    request: RequestView, prefill: NodeView, decode: NodeView, factor: float
) -> None:
    rate = prefill.spec.link_bytes_per_s / factor
    slower = replace(prefill, spec=replace(prefill.spec, link_bytes_per_s=rate))
    faster_s = via_prefill(request, prefill, decode).total_s
    assert via_prefill(request, slower, decode).total_s >= faster_s - 1e-9


@given(sp.prefill_nodes(), st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_prompts_added_one_by_one_cost_as_much_as_all_at_once(
    node: NodeView, prompts: list[int]
) -> None:
    """What the ledger books for each adds up to the drain of the whole backlog."""
    node.backlog_tokens, node.backlog_token_pairs, booked_s = 0, 0.0, 0.0
    for tokens in prompts:
        booked_s += execute_on_prefill_s(make_request(prompt_tokens=tokens), node)
        node.backlog_tokens += tokens
        node.backlog_token_pairs += token_pairs(tokens, 0)
    spec = node.spec
    whole_s = prefill_s(
        spec.profile, node.backlog_tokens, node.backlog_token_pairs, spec.step_tokens_max
    )
    assert booked_s == pytest.approx(whole_s)
