"""The feedback: what it learns, how fast, and that the budget it hands out means what it says."""

from __future__ import annotations

from math import inf, nan
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import A100_8B
from spillway.core.chunks import next_chunk_tokens
from spillway.core.controller import GAIN_MAX, MARGIN_MAX, MARGIN_MIN, Controller
from spillway.core.latency import step_s, token_pairs

SEQS, KV = 16, 20_000
DECODE_S = step_s(A100_8B, SEQS, KV)
CHUNK = 512
PAIRS = token_pairs(CHUNK, 1000)
MIXED_S = step_s(A100_8B, SEQS, KV, CHUNK, 1000)


def test_a_fresh_controller_says_what_the_profile_says() -> None:
    controller = Controller(A100_8B)
    assert controller.decode_s(SEQS, KV) == DECODE_S
    assert controller.predict_s(SEQS, KV, CHUNK, PAIRS) == pytest.approx(MIXED_S, rel=1e-12)
    assert controller.chunk_budget_s(SEQS, KV, 0.05) == pytest.approx(0.05, rel=1e-12)
    assert controller.chunk_budget_s(SEQS, KV, inf) == inf


def test_slower_decodes_raise_only_their_gain() -> None:
    controller = Controller(A100_8B)
    for _ in range(300):
        controller.observe(SEQS, KV, 0, 0.0, 1.3 * DECODE_S)
    assert controller.gain_decode == pytest.approx(1.3, rel=1e-3)
    assert (controller.gain_prefill, controller.margin) == (1.0, 1.0)


def test_slower_chunks_raise_only_their_gain_and_predictions_become_right() -> None:
    controller = Controller(A100_8B)
    actual_s = DECODE_S + 1.4 * (MIXED_S - DECODE_S)
    for _ in range(300):
        controller.observe(SEQS, KV, CHUNK, PAIRS, actual_s)
    assert controller.gain_prefill == pytest.approx(1.4, rel=1e-3)
    assert controller.gain_decode == 1.0
    assert controller.predict_s(SEQS, KV, CHUNK, PAIRS) == pytest.approx(actual_s, rel=1e-3)


def test_a_chunk_that_hardly_shows_teaches_nothing_about_chunks() -> None:
    controller = Controller(A100_8B)
    controller.observe(SEQS, KV, 16, token_pairs(16, 0), 2 * DECODE_S)
    assert controller.gain_prefill == 1.0
    assert controller.margin > 1.0


def test_the_margin_tightens_fast_and_loosens_slowly() -> None:
    controller = Controller(A100_8B)
    for _ in range(5):
        controller.observe(SEQS, KV, CHUNK, PAIRS, 3 * MIXED_S)
        controller.gain_prefill = 1.0  # the margin alone
    tight = controller.margin
    assert tight > 1.1
    for _ in range(5):
        controller.observe(SEQS, KV, CHUNK, PAIRS, 0.9 * MIXED_S)
        controller.gain_prefill = 1.0
    assert 1.0 < tight - controller.margin + 1.0 < 1.02


def test_under_scatter_few_steps_exceed_the_target() -> None:
    """INV: with the margin, about 95 % of the steps that are sized to a target stay inside it."""
    controller, random = Controller(A100_8B), Random(7)
    over = sized = 0
    for step in range(4000):
        budget_s = controller.chunk_budget_s(SEQS, KV, 0.05)
        chunk = next_chunk_tokens(A100_8B, SEQS, KV, 1000, 1 << 20, budget_s, 4096, 16)
        actual_s = step_s(A100_8B, SEQS, KV, chunk, 1000) * 1.2 * random.lognormvariate(0, 0.06)
        if step > 500:
            over += actual_s > 0.05
            sized += 1
        controller.observe(SEQS, KV, chunk, token_pairs(chunk, 1000), actual_s)
        controller.observe(SEQS, KV, 0, 0.0, DECODE_S * 1.2 * random.lognormvariate(0, 0.06))
    assert 0.01 < over / sized < 0.08


@pytest.mark.parametrize("actual_s", [0.0, -1.0, nan, inf])
def test_nonsense_is_not_learnt(actual_s: float) -> None:
    controller = Controller(A100_8B)
    controller.observe(SEQS, KV, CHUNK, PAIRS, actual_s)
    controller.observe(SEQS, KV, 0, 0.0, actual_s)
    assert (controller.gain_decode, controller.gain_prefill, controller.margin) == (1.0, 1.0, 1.0)


def test_one_interrupted_step_moves_a_gain_little() -> None:
    controller = Controller(A100_8B)
    controller.observe(SEQS, KV, 0, 0.0, 100 * DECODE_S)
    assert controller.gain_decode <= 1.051


def test_a_frozen_controller_learns_nothing() -> None:
    controller = Controller(A100_8B, learning=False)
    controller.observe(SEQS, KV, CHUNK, PAIRS, 3 * MIXED_S)
    assert (controller.gain_decode, controller.gain_prefill, controller.margin) == (1.0, 1.0, 1.0)


def test_over_budget_is_about_decodes_alone_with_gain_and_margin() -> None:
    controller = Controller(A100_8B)
    assert not controller.over_budget(SEQS, KV, 1.01 * DECODE_S)
    controller.gain_decode = 1.05
    assert controller.over_budget(SEQS, KV, 1.01 * DECODE_S)
    controller.gain_decode, controller.margin = 1.0, 1.05
    assert controller.over_budget(SEQS, KV, 1.01 * DECODE_S)


@given(
    gain_decode=st.floats(0.3, 4),
    gain_prefill=st.floats(0.3, 4),
    margin=st.floats(1, 1.6),
    target_s=st.floats(0.005, 0.2),
    context=st.integers(0, 30_000),
)
def test_the_largest_chunk_of_a_budget_meets_the_target_as_corrected(
    gain_decode: float, gain_prefill: float, margin: float, target_s: float, context: int
) -> None:
    controller = Controller(A100_8B)
    controller.gain_decode, controller.gain_prefill = gain_decode, gain_prefill
    controller.margin = margin
    budget_s = controller.chunk_budget_s(SEQS, KV, target_s)

    def corrected_s(tokens: int) -> float:
        pairs = token_pairs(tokens, context)
        return margin * controller.predict_s(SEQS, KV, tokens, pairs)

    chunk = next_chunk_tokens(A100_8B, SEQS, KV, context, 1 << 20, budget_s, 4096, 1)
    if chunk:
        assert corrected_s(chunk) <= target_s + 1e-7
    if chunk < 4096:
        assert corrected_s(chunk + 1) > target_s - 1e-7


@given(st.lists(st.tuples(st.booleans(), st.floats(1e-6, 10)), max_size=50))
def test_whatever_is_measured_gains_and_margin_stay_in_their_bounds(
    steps: list[tuple[bool, float]],
) -> None:
    controller = Controller(A100_8B)
    for mixed, actual_s in steps:
        controller.observe(SEQS, KV, CHUNK if mixed else 0, PAIRS if mixed else 0.0, actual_s)
        assert 0 < controller.gain_decode <= GAIN_MAX
        assert 0 < controller.gain_prefill <= GAIN_MAX
        assert MARGIN_MIN <= controller.margin <= MARGIN_MAX
