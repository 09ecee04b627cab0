"""The burst for real engines: what of it follows the engines' speed, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.cli.vllm_burst import make_burst, prompt_s, scaled_by, tbt_target_s
from spillway.core.latency import LatencyProfile, step_s
from spillway.vllmcluster.plan import VllmPlan, profile_file

PLAN = VllmPlan(folder=Path("unused"), python=Path("python"), shape="m10")
LAW = profile_file(PLAN).latency()


def slower(factor: float) -> LatencyProfile:
    return scaled_by(profile_file(PLAN), factor).latency()


def test_a_slower_engine_takes_longer_for_every_part_of_a_step() -> None:
    for tokens in (1, 40, 3000):
        assert prompt_s(slower(2.5), tokens) == pytest.approx(2.5 * prompt_s(LAW, tokens))
    assert step_s(slower(2.5), 8, 4000) == pytest.approx(2.5 * step_s(LAW, 8, 4000))


def test_the_same_seed_gives_the_same_burst_and_another_one_another() -> None:
    assert make_burst(LAW, 3) == make_burst(LAW, 3)
    assert make_burst(LAW, 3).rows != make_burst(LAW, 4).rows


def test_slower_engines_get_the_same_prompts_more_slowly_and_looser_targets() -> None:
    fast, slow = make_burst(LAW, 1), make_burst(slower(3.0), 1)
    assert [row[1:] for row in slow.rows] == [row[1:] for row in fast.rows]
    for after, before in zip(slow.rows, fast.rows, strict=True):
        assert after.arrival_s == pytest.approx(3 * before.arrival_s)
    assert slow.slo.ttft_s == pytest.approx(3 * fast.slo.ttft_s, rel=0.02)
    assert slow.slo.tbt_s == pytest.approx(3 * fast.slo.tbt_s, rel=0.02)


def test_it_comes_faster_than_one_prefill_node_can_take_it_and_fits_the_engines() -> None:
    burst = make_burst(LAW, 1, prompts=20)
    long = [row for row in burst.rows if row.prompt_tokens > 600]  # no chat is as long
    span_s = long[-1].arrival_s - long[0].arrival_s
    assert sum(prompt_s(LAW, row.prompt_tokens) for row in long) > 2 * span_s
    assert len(burst.rows) == 30
    assert (
        max(row.prompt_tokens + row.output_tokens for row in burst.rows) < PLAN.context_tokens_max
    )
    kv_tokens = sum(row.prompt_tokens + row.output_tokens for row in burst.rows)
    assert kv_tokens < PLAN.kv_capacity_tokens  # so that KV is never what decides
    assert burst.work_s == pytest.approx(sum(prompt_s(LAW, r.prompt_tokens) for r in burst.rows))


def test_the_gap_target_leaves_room_for_a_chunk_at_the_end_of_a_long_prompt() -> None:
    for factor in (1.0, 4.0):
        law = slower(factor)
        assert step_s(law, 16, 16 * 500, 64, 4000 - 64) < 0.9 * tbt_target_s(law)
