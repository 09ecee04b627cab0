"""One simulated engine against steps computed by hand."""

from __future__ import annotations

from math import inf

import pytest

from simdrive import finish, finished, job, round_node, step_of, times, told
from spillway.core.errors import InvariantViolation, NodeError
from spillway.core.types import ChunkMode, Role
from spillway.sim.residents import Finished, FirstTokenAt, PrefillDone, Tokens
from spillway.sim.snapshot import recount_kv


def test_prompts_are_packed_back_to_back_into_full_steps() -> None:
    node = round_node(Role.PREFILL, step_tokens_max=2048)
    for request_id, prompt_tokens in (("a", 1500), ("b", 1000), ("c", 100)):
        node.submit_prefill(job(request_id, prompt_tokens, 1), 0.0)
    outcomes = finish(node)
    first_s = step_of(0, 0, [(1500, 0), (548, 0)])
    second_s = step_of(0, 0, [(452, 548), (100, 0)])
    done_s = times(outcomes, PrefillDone)
    assert done_s == pytest.approx({"a": first_s, "b": first_s + second_s, "c": first_s + second_s})
    assert node.steps == 2


def test_a_long_prompt_takes_several_steps_and_one_jump() -> None:
    node = round_node(Role.PREFILL, step_tokens_max=2048)
    node.submit_prefill(job("a", 10_000, 1), 1.0)
    outcomes = finish(node)
    chunks = [(2048, 2048 * i) for i in range(4)] + [(10_000 - 4 * 2048, 4 * 2048)]
    expected_s = 1.0 + sum(step_of(0, 0, [chunk]) for chunk in chunks)
    assert times(outcomes, PrefillDone)["a"] == pytest.approx(expected_s)
    assert (node.steps, node.segments) == (5, 2)


def test_what_arrives_in_a_step_waits_for_its_end() -> None:
    node = round_node(Role.PREFILL)
    node.submit_prefill(job("a", 1000, 1), 0.0)
    node.advance(0.0)
    node.submit_prefill(job("b", 1000, 1), 0.001)
    outcomes = finish(node)
    one_s = step_of(0, 0, [(1000, 0)])
    assert times(outcomes, PrefillDone) == pytest.approx({"a": one_s, "b": 2 * one_s})
    assert outcomes[1].resident.started_s == pytest.approx(one_s)


def test_prefilled_kv_is_held_until_it_is_released() -> None:
    node = round_node(Role.PREFILL, kv_capacity_tokens=1500)
    node.submit_prefill(job("a", 1000, 1), 0.0)
    node.submit_prefill(job("b", 1000, 1), 0.0)
    outcomes = finish(node, release=False)
    assert told(outcomes) == [("PrefillDone", "a", round(step_of(0, 0, [(1000, 0)]), 9))]
    assert node.kv.used_tokens == 1000
    node.release_kv("a", 5.0)
    assert times(finish(node), PrefillDone) == {
        "b": pytest.approx(5.0 + step_of(0, 0, [(1000, 0)]))
    }
    assert node.kv.used_tokens == 0


def test_a_pulled_request_emits_its_first_token_in_its_first_step() -> None:
    node = round_node()
    resident = node.submit_pulled(job("a", 1000, 3), 2.0)
    outcomes = finish(node)
    steps_s = [step_of(1, 1000), step_of(1, 1001), step_of(1, 1002)]
    assert resident.kv_arrived_s == resident.admitted_s == 2.0
    assert told(outcomes) == [
        ("FirstTokenAt", "a", round(2.0 + steps_s[0], 9)),
        ("Finished", "a", round(2.0 + sum(steps_s), 9)),
    ]
    assert node.gaps.count == 2
    assert resident.gap_max_s == pytest.approx(steps_s[2])


def test_an_arrival_in_a_jump_joins_at_the_next_step_boundary() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 100), 0.0)
    finish(node, 0.0)
    steps_s = [step_of(1, 1000 + i) for i in range(100)]
    boundary_s = sum(steps_s[:10])
    node.advance(node.next_event_s())  # the first token; a jump to the last one is under way
    node.submit_pulled(job("b", 500, 1), boundary_s - 0.001)
    assert node.next_event_s() == pytest.approx(boundary_s)
    outcomes = finish(node)
    assert times(outcomes, FirstTokenAt)["b"] == pytest.approx(boundary_s + step_of(2, 1010 + 500))


def test_a_local_request_emits_its_first_token_with_its_last_chunk() -> None:
    node = round_node(chunk_tokens_max=512)
    resident = node.submit_local(job("a", 1000, 2), 0.0)
    outcomes = finish(node)
    prefill_s = step_of(0, 0, [(512, 0)]) + step_of(0, 0, [(488, 512)])
    assert resident.prefill_done_s == resident.first_token_s == pytest.approx(prefill_s)
    assert times(outcomes, Finished)["a"] == pytest.approx(prefill_s + step_of(1, 1001))


def test_engine_chunks_keep_every_resident_gap_within_the_margin() -> None:
    node = round_node(tbt_margin_frac=0.9)
    node.submit_pulled(job("a", 1000, 200, slo_tbt_s=0.02), 0.0)
    finish(node, 0.0)
    node.submit_local(job("b", 5000, 1, slo_tbt_s=0.5), 0.001)
    outcomes = finish(node)
    gap_max_s = max(o.resident.gap_max_s for o in outcomes if o.resident.request_id == "a")
    assert 0.9 * 0.9 * 0.02 < gap_max_s <= 0.9 * 0.02 + 1e-9
    assert node.gaps.count == 199


def test_static_chunks_ignore_the_budget() -> None:
    node = round_node(chunk_mode=ChunkMode.STATIC, chunk_tokens_max=2048)
    node.submit_pulled(job("a", 1000, 4, slo_tbt_s=0.02), 0.0)
    finish(node, 0.0)
    node.submit_local(job("b", 2048, 1, slo_tbt_s=0.02), 0.001)
    resident = node.members["a"]
    finish(node)
    assert resident.gap_max_s == pytest.approx(step_of(1, 1001, [(2048, 0)]))
    assert resident.gaps_late == 1


def test_a_literal_schedule_is_followed_whatever_the_batch_does() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 50, slo_tbt_s=0.011), 0.0)
    finish(node, 0.0)
    node.submit_local(job("b", 700, 1, chunks=((256, 2), (128, 2))), 0.001)
    node.submit_local(job("c", 10, 1), 0.001)
    outcomes = finish(node)
    start_s = step_of(1, 1000)
    sizes = [(256, 0), (256, 256), (128, 512), (60, 640)]
    expected_s = start_s + sum(step_of(1, 1001 + i, [size]) for i, size in enumerate(sizes))
    assert times(outcomes, FirstTokenAt)["b"] == pytest.approx(expected_s)
    assert times(outcomes, FirstTokenAt)["c"] > expected_s  # it never shares the schedule's steps


def test_a_used_up_schedule_leaves_the_rest_to_the_node() -> None:
    node = round_node(chunk_tokens_max=512)
    node.submit_local(job("a", 700, 1, chunks=((100, 1),)), 0.0)
    outcomes = finish(node)
    sizes = [(100, 0), (512, 100), (88, 612)]
    assert times(outcomes, Finished)["a"] == pytest.approx(sum(step_of(0, 0, [s]) for s in sizes))


def test_a_prompt_without_a_safe_chunk_gets_the_smallest_after_skips_max_steps() -> None:
    node = round_node(skips_max=8, chunk_tokens_multiple=64)
    node.submit_pulled(job("a", 1000, 500, slo_tbt_s=0.005), 0.0)  # decode alone takes 10 ms
    finish(node, 0.0)
    resident = node.submit_local(job("b", 128, 1), 0.001)
    node.advance(node.next_event_s())
    outcomes = finish(node, 1.0)
    decode_s = [step_of(1, 1000 + i) for i in range(40)]
    chunk_s = 64e-5 + 1e-9 * 64 * 65 / 2
    assert resident.started_s == pytest.approx(sum(decode_s[:9]))  # its first step, then 8 skipped
    # 8 skipped, one chunk, 8 skipped, the other chunk, which attends 64 tokens more.
    expected_s = sum(decode_s[:19]) + 2 * chunk_s + 1e-9 * 64 * 64
    assert times(outcomes, FirstTokenAt)["b"] == pytest.approx(expected_s)


def test_local_prompts_share_a_step_when_both_are_safe() -> None:
    node = round_node()
    node.submit_pulled(job("a", 100, 50, slo_tbt_s=0.1), 0.0)
    finish(node, 0.0)
    node.submit_local(job("b", 200, 1), 0.001)
    node.submit_local(job("c", 300, 1), 0.001)
    outcomes = finish(node)
    expected_s = step_of(1, 100) + step_of(1, 101, [(200, 0), (300, 0)])
    first_s = times(outcomes, FirstTokenAt)
    assert first_s["b"] == first_s["c"] == pytest.approx(expected_s)


def test_pulled_requests_are_admitted_before_local_prompts_start() -> None:
    node = round_node(seqs_max=2)
    node.submit_pulled(job("a", 100, 20), 0.0)
    finish(node, 0.0)
    node.submit_local(job("local", 100, 5), 0.001)
    node.submit_pulled(job("pulled", 100, 5), 0.002)
    outcomes = finish(node)
    first_s = times(outcomes, FirstTokenAt)
    assert first_s["pulled"] < first_s["local"]
    assert first_s["local"] > times(outcomes, Finished)["pulled"]  # two places, both taken


def test_a_pulled_request_waits_for_kv_room() -> None:
    node = round_node(kv_capacity_tokens=1500)
    node.submit_pulled(job("a", 1000, 10), 0.0)
    waiting = node.submit_pulled(job("b", 600, 2), 0.0)
    outcomes = finish(node)
    assert waiting.admitted_s == times(outcomes, Finished)["a"]
    assert finished(outcomes) == ["a", "b"]


def test_what_can_never_fit_is_refused_at_once_and_changes_nothing() -> None:
    node = round_node(kv_capacity_tokens=1000)
    with pytest.raises(NodeError, match="n0 cannot hold request a: 1100 tokens"):
        node.submit_local(job("a", 1000, 100), 0.0)
    assert not node.members
    assert node.next_event_s() == inf


def test_an_id_in_use_and_an_empty_prompt_are_our_bugs() -> None:
    node = round_node()
    node.submit_local(job("a"), 0.0)
    with pytest.raises(InvariantViolation, match="already has"):
        node.submit_pulled(job("a"), 0.0)
    with pytest.raises(InvariantViolation, match="no prompt"):
        node.submit_local(job("b", 0), 0.0)


def test_a_late_driver_gets_what_it_missed_with_the_next_advance() -> None:
    node = round_node(per_token=True)
    node.submit_pulled(job("a", 1000, 3), 0.0)
    node.submit_pulled(job("b", 1000, 1), 10.0)  # the driver slept: `a` is long done
    assert node.next_event_s() == -inf
    assert told(node.advance(10.0))[-1][:2] == ("Finished", "a")
    assert finished(finish(node)) == ["b"]


def test_a_slow_node_is_slow_from_the_next_step_on() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 10), 0.0)
    finish(node, 0.0)
    node.advance(node.next_event_s())
    node.rescale(3.0, step_of(1, 1000) + 0.001)
    outcomes = finish(node)
    steps_s = [step_of(1, 1000 + i) for i in range(10)]
    expected_s = sum(steps_s[:2]) + 3 * sum(steps_s[2:])
    assert times(outcomes, Finished)["a"] == pytest.approx(expected_s)


def test_a_per_token_node_names_every_token_once() -> None:
    node = round_node(per_token=True, kv_capacity_tokens=700)
    node.submit_pulled(job("a", 200, 40), 0.0)
    node.submit_local(job("b", 300, 60), 0.0)
    node.submit_pulled(job("c", 100, 80), 0.1)
    count = {"a": 0, "b": 0, "c": 0}
    for outcome in finish(node):
        if isinstance(outcome, Tokens):
            count[outcome.resident.request_id] += outcome.tokens
    assert count == {"a": 40, "b": 60, "c": 80}
    assert node.segments == node.steps
    recount_kv(node)
