"""A node's report, at moments where it can be computed by hand."""

from __future__ import annotations

from math import inf

import pytest

from simdrive import finish, job, round_node, step_of
from spillway.core.errors import InvariantViolation
from spillway.core.latency import token_pairs
from spillway.core.types import Role
from spillway.sim.snapshot import recount_kv


def test_an_idle_node_reports_nothing_but_its_room() -> None:
    state = round_node(kv_capacity_tokens=5000).state(3.0)
    assert (state.taken_at_s, state.step, state.kv_capacity_tokens) == (3.0, 0, 5000)
    assert (state.backlog_prompts, state.backlog_tokens, state.backlog_token_pairs) == (0, 0, 0.0)
    assert (state.decode_seqs, state.kv_used_tokens, state.tbt_s_min) == (0, 0, inf)
    assert not state.over_budget


def test_within_a_prefill_step_the_backlog_shrinks_with_time() -> None:
    node = round_node(Role.PREFILL)
    node.submit_prefill(job("a", 1000, 1, dispatch_id=7), 0.0)
    node.submit_prefill(job("b", 3000, 1, dispatch_id=9), 0.0)
    assert node.state(0.0).backlog_tokens == 4000
    finish(node, 0.0)
    step_s = step_of(0, 0, [(1000, 0), (1048, 0)])
    half = node.state(step_s / 2)
    assert half.backlog_tokens == 4000 - 1024
    assert half.backlog_prompts == 2
    assert half.dispatch_seen == 9
    assert half.kv_used_tokens == 0  # nothing of the step under way is computed yet
    remaining = token_pairs(1000, 0) - token_pairs(500, 0) + token_pairs(3000, 0)
    assert half.backlog_token_pairs == pytest.approx(remaining - 524 * (524 + 1) / 2)


def test_within_a_jump_the_batch_is_where_single_steps_would_be() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 500, slo_tbt_s=0.05), 0.0)
    steps_s = [step_of(1, 1000 + i) for i in range(20)]
    finish(node, steps_s[0])
    state = node.state(sum(steps_s[:10]) + steps_s[10] / 2)
    assert (state.step, state.decode_seqs, state.kv_used_tokens) == (10, 1, 1010)
    assert state.tbt_s_min == 0.05


def test_a_pulled_request_counts_as_decoding_from_its_first_token_on() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 500, slo_tbt_s=0.05), 0.0)
    for kv_used_tokens in (0, 1000):  # booked when it is let in
        state = node.state(0.001)
        assert (state.decode_seqs, state.kv_used_tokens) == (0, kv_used_tokens)
        assert state.tbt_s_min == 0.05
        finish(node, 0.0)
    finish(node, step_of(1, 1000))
    assert node.state(0.02).decode_seqs == 1


def test_targets_of_waiting_local_requests_count_and_those_of_prefill_legs_do_not() -> None:
    node = round_node(seqs_max=1)
    node.submit_local(job("a", 1000, 5, slo_tbt_s=0.04), 0.0)
    assert node.state(0.0).tbt_s_min == 0.04
    node = round_node(Role.PREFILL)
    node.submit_prefill(job("a", 1000, 1, slo_tbt_s=0.04), 0.0)
    assert node.state(0.0).tbt_s_min == inf


def test_a_batch_slower_than_its_strictest_target_is_over_budget() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 50, slo_tbt_s=0.012), 0.0)
    finish(node, 0.02)
    assert not node.state(0.02).over_budget
    node.submit_pulled(job("b", 50_000, 50), 0.021)  # adds 5 ms to every step
    finish(node, 0.04)
    assert node.state(0.05).over_budget


def test_a_per_token_node_keeps_its_steps_with_what_they_computed_and_cost() -> None:
    node = round_node(per_token=True, chunk_tokens_max=512)
    node.submit_local(job("a", 1000, 3), 0.0)
    finish(node)
    features = [
        (one.step, one.decode_seqs, one.kv_tokens, one.prefill_tokens, one.prefill_token_pairs)
        for one in node.recent_steps
    ]
    assert features == [
        (1, 0, 0, 512, token_pairs(512, 0)),
        (2, 0, 0, 488, token_pairs(488, 512)),
        (3, 1, 1001, 0, 0.0),
        (4, 1, 1002, 0, 0.0),
    ]
    for one in node.recent_steps:
        context = 512 if one.step == 2 else 0
        chunks = [(one.prefill_tokens, context)] if one.prefill_tokens else []
        true_s = step_of(one.decode_seqs, one.kv_tokens, chunks)
        assert one.actual_s == pytest.approx(true_s)
        assert one.predicted_s == pytest.approx(true_s)


def test_a_jumping_node_keeps_no_steps() -> None:
    node = round_node()
    node.submit_local(job("a", 1000, 3), 0.0)
    finish(node)
    assert not node.recent_steps


def test_a_wrong_book_is_noticed() -> None:
    node = round_node(kv_capacity_tokens=5000)
    node.submit_pulled(job("a", 1000, 50), 0.0)
    finish(node, 0.0)
    recount_kv(node)
    node.kv.give(1)
    with pytest.raises(InvariantViolation, match="residents hold 1000 KV tokens, 999 are booked"):
        recount_kv(node)
