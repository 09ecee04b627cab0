"""What a fixed chunk does to a batch: the same plans as the policies', and their bounds."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import A100_8B, make_node, make_request
from spillway.core.chunks import STEP_TOLERANCE_S
from spillway.core.latency import step_s
from spillway.core.placement import safe_plan
from spillway.core.stock import (
    ExpectedBatch,
    decode_step_s,
    recommended_flags,
    safe_chunk_tokens,
    safe_seqs,
    worst_step_s,
)
from spillway.core.types import ChunkMode

BATCH = ExpectedBatch(decode_seqs=32, context_tokens=2000, prompt_tokens=8000)
BUDGET_S = 0.054
batches = st.builds(
    ExpectedBatch,
    decode_seqs=st.integers(0, 200),
    context_tokens=st.integers(1, 4000),
    prompt_tokens=st.integers(1, 30_000),
)


def test_the_worst_step_is_the_last_full_chunk() -> None:
    # 8000 tokens are 15 chunks of 512 and a rest; each step before adds a token to every stream.
    last_s = step_s(A100_8B, 32, 32 * 2000 + 14 * 32, 512, 14 * 512)
    assert worst_step_s(A100_8B, BATCH, 512) == pytest.approx(last_s)
    assert decode_step_s(A100_8B, BATCH) == step_s(A100_8B, 32, 64_000)


def test_a_schedule_out_of_bounds_has_no_worst_step() -> None:
    assert worst_step_s(A100_8B, BATCH._replace(prompt_tokens=100_000), 8) == inf


@given(batches, st.floats(0.01, 0.5))
def test_the_safe_chunk_is_the_largest(batch: ExpectedBatch, budget_s: float) -> None:
    chunk = safe_chunk_tokens(A100_8B, batch, budget_s, 64)
    assert chunk % 64 == 0
    if chunk:
        assert worst_step_s(A100_8B, batch, chunk) <= budget_s + STEP_TOLERANCE_S
    if chunk < 8192:
        assert worst_step_s(A100_8B, batch, chunk + 64) > budget_s


@given(batches, st.sampled_from((64, 256, 1024)), st.floats(0.005, 0.5))
def test_one_stream_more_is_too_many(batch: ExpectedBatch, chunk: int, budget_s: float) -> None:
    seqs = safe_seqs(A100_8B, batch, budget_s, chunk)

    def worst(streams: int) -> float:
        return worst_step_s(A100_8B, batch._replace(decode_seqs=streams), chunk)

    assert seqs < 0 or worst(seqs) <= budget_s + STEP_TOLERANCE_S
    assert worst(seqs + 1) > budget_s


@pytest.mark.parametrize("chunk", [256, 512, 576, 1024])
def test_the_policies_deflect_exactly_where_the_step_is_safe(chunk: int) -> None:
    node = make_node(
        chunk_mode=ChunkMode.STATIC,
        chunk_tokens_max=chunk,
        decode_seqs=BATCH.decode_seqs,
        kv_used_tokens=BATCH.kv_tokens,
        tbt_s_min=0.06,
    )
    plan = safe_plan(make_request(prompt_tokens=BATCH.prompt_tokens), node)
    is_safe = worst_step_s(A100_8B, BATCH, chunk) <= BUDGET_S
    assert (plan is not None) is is_safe
    assert is_safe is (chunk <= 512)


@given(st.integers(1, 128), st.integers(1, 300), st.integers(1, 1024))
def test_recommended_flags_start_an_engine_and_leave_room(
    chunk_in_64: int, decode_seqs: int, seqs_max: int
) -> None:
    chunk = 64 * chunk_in_64
    flags = recommended_flags(chunk, decode_seqs, seqs_max)
    assert flags.max_num_batched_tokens == chunk
    assert flags.max_num_seqs <= min(chunk, seqs_max)
    assert 0 < flags.long_prefill_token_threshold <= chunk - min(2 * decode_seqs, chunk // 2)
    if 2 * decode_seqs <= chunk // 2:  # the streams, one prompt, and something left
        assert decode_seqs + flags.long_prefill_token_threshold < chunk
