"""The step-time law: against a term-by-term sum, a packing of steps, and a search for the root."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

import strategies as sp
from builders import A100_8B, make_profile
from spillway.core.errors import ConfigError
from spillway.core.latency import (
    LatencyProfile,
    chunk_tokens_max,
    prefill_s,
    step_s,
    token_pairs,
    tokens_s,
)


def spelled_out_step_s(
    profile: LatencyProfile, seqs: int, kv_tokens: int, chunk: int, context: int
) -> float:
    """The formula as printed in the module, one term after the other, one token at a time."""
    scheduled = seqs + chunk
    total_s = profile.step_base_s + profile.decode_seq_s * seqs + profile.kv_token_s * kv_tokens
    for hinge, slope_s in zip(profile.token_hinges, profile.token_s, strict=True):
        total_s += slope_s * max(0, scheduled - hinge)
    attended = sum(context + at + 1 for at in range(chunk))
    return total_s + profile.token_pair_s * attended


@given(sp.profiles(), sp.decode_seqs, sp.kv_tokens, st.integers(0, 300), sp.context_tokens)
def test_step_time_is_the_printed_sum(
    profile: LatencyProfile, seqs: int, kv_tokens: int, chunk: int, context: int
) -> None:
    expected_s = spelled_out_step_s(profile, seqs, kv_tokens, chunk, context)
    assert step_s(profile, seqs, kv_tokens, chunk, context) == pytest.approx(expected_s, rel=1e-12)


@pytest.mark.parametrize(("tokens", "expected_s"), [(0, 0.0), (64, 640e-6), (65, 665e-6)])
def test_each_hinge_adds_its_slope(tokens: int, expected_s: float) -> None:
    profile = make_profile(token_hinges=(0, 64), token_s=(10e-6, 15e-6))
    assert tokens_s(profile, tokens) == pytest.approx(expected_s)


@given(sp.profiles(), st.integers(0, 9000), st.integers(1, 500))
def test_token_time_never_falls(profile: LatencyProfile, tokens: int, more: int) -> None:
    assert tokens_s(profile, tokens) <= tokens_s(profile, tokens + more) + 1e-12


@given(st.integers(0, 9000), st.integers(1, 500))
def test_the_token_time_of_a_dense_model_bends_upwards(tokens: int, more: int) -> None:
    low_s, mid_s, high_s = (tokens_s(A100_8B, tokens + at * more) for at in range(3))
    assert high_s - mid_s >= mid_s - low_s - 1e-12


@given(st.integers(0, 3000), st.integers(0, 3000), sp.context_tokens)
def test_attention_work_does_not_depend_on_the_chunking(
    first: int, second: int, context: int
) -> None:
    whole = token_pairs(first + second, context)
    assert token_pairs(first, context) + token_pairs(second, context + first) == whole


@given(
    sp.profiles(),
    st.lists(st.tuples(st.integers(1, 700), st.integers(0, 900)), min_size=1, max_size=6),
    st.sampled_from((1, 7, 64, 512)),
)
def test_prefill_time_is_that_of_packed_steps(
    profile: LatencyProfile, prompts: list[tuple[int, int]], step_tokens: int
) -> None:
    """A FIFO engine fills each step with the next tokens in line, across prompts."""
    queue = [[tokens, cached] for tokens, cached in prompts]
    total_s = 0.0
    while queue:
        room, pairs = step_tokens, 0.0
        while queue and room:
            left, done = queue[0]
            chunk = min(left, room)
            pairs += token_pairs(chunk, done)
            room -= chunk
            queue[0] = [left - chunk, done + chunk]
            if left == chunk:
                del queue[0]
        total_s += profile.step_base_s + tokens_s(profile, step_tokens - room)
        total_s += profile.token_pair_s * pairs
    tokens = sum(tokens for tokens, _ in prompts)
    pairs = sum(token_pairs(tokens, cached) for tokens, cached in prompts)
    assert prefill_s(profile, tokens, pairs, step_tokens) == pytest.approx(total_s, rel=1e-9)


def test_nothing_to_prefill_takes_no_time() -> None:
    assert prefill_s(A100_8B, 0, 0.0, 2048) == 0.0


# --- the largest chunk within a budget -------------------------------------------------------


def searched_chunk(
    profile: LatencyProfile, seqs: int, kv_tokens: int, context: int, budget_s: float
) -> int:
    """The largest whole chunk within the budget by bisection, -1 if not even an empty one is."""
    if step_s(profile, seqs, kv_tokens, 0, context) > budget_s:
        return -1
    low, high = 0, 1 << 40
    while low < high:
        mid = (low + high + 1) // 2
        if step_s(profile, seqs, kv_tokens, mid, context) <= budget_s:
            low = mid
        else:
            high = mid - 1
    return low


@pytest.mark.slow
@given(sp.profiles(), sp.decode_seqs, sp.kv_tokens, sp.context_tokens, sp.budgets_s)
def test_the_root_is_the_largest_chunk_that_fits(
    profile: LatencyProfile, seqs: int, kv_tokens: int, context: int, budget_s: float
) -> None:
    found = chunk_tokens_max(profile, seqs, kv_tokens, context, budget_s)
    expected = searched_chunk(profile, seqs, kv_tokens, context, budget_s)
    if expected < 0:
        assert found == -1.0
    else:
        assert expected - 1e-6 * (1 + expected) <= found < expected + 1 + 1e-6 * (1 + expected)


@given(sp.profiles(), st.integers(2048, 9000), sp.context_tokens, st.floats(0.0001, 0.2))
def test_the_root_with_a_batch_beyond_the_last_hinge(
    profile: LatencyProfile, seqs: int, context: int, spare_s: float
) -> None:
    budget_s = step_s(profile, seqs, 0) + spare_s
    found = chunk_tokens_max(profile, seqs, 0, context, budget_s)
    assert searched_chunk(profile, seqs, 0, context, budget_s) == pytest.approx(found, abs=1.0001)


def test_the_root_without_an_attention_term_is_linear() -> None:
    profile = make_profile(
        step_base_s=0.01, token_hinges=(0,), token_s=(1e-5,), kv_token_s=0.0, token_pair_s=0.0
    )
    assert chunk_tokens_max(profile, 0, 0, 50_000, 0.03) == pytest.approx(2000)


def test_the_root_on_a_law_that_grows_in_the_batch_alone_is_unbounded() -> None:
    profile = make_profile(token_hinges=(0,), token_s=(0.0,), token_pair_s=0.0)
    assert chunk_tokens_max(profile, 10, 1000, 0, 1.0) == inf


@pytest.mark.parametrize("short_s", [1e-6, 0.005])
def test_no_chunk_fits_where_the_batch_alone_is_over_budget(short_s: float) -> None:
    budget_s = step_s(A100_8B, 64, 100_000) - short_s
    assert chunk_tokens_max(A100_8B, 64, 100_000, 0, budget_s) == -1.0


def test_a_budget_of_the_batch_alone_leaves_room_for_nothing() -> None:
    budget_s = step_s(A100_8B, 64, 100_000) + 1e-9
    assert 0.0 <= chunk_tokens_max(A100_8B, 64, 100_000, 0, budget_s) < 1e-3


# --- what a profile must be ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"step_base_s": -1.0}, "step_base_s"),
        ({"step_base_s": nan}, "step_base_s"),
        ({"kv_token_s": inf}, "kv_token_s"),
        ({"token_pair_s": nan}, "token_pair_s"),
        ({"token_hinges": ()}, "token_hinges"),
        ({"token_hinges": (64, 128, 768)}, "token_hinges"),
        ({"token_hinges": (0, 128, 128)}, "token_hinges"),
        ({"token_hinges": (0, 768, 64)}, "token_hinges"),
        ({"token_s": (1e-6,)}, "token_s"),
        ({"token_s": (1e-6, -2e-6, 5e-6)}, "must not be shorter"),
        ({"token_s": (1e-6, nan, 0.0)}, "token_s"),
        ({"step_base_s": 0.0, "token_s": (0.0, 0.0, 0.0)}, "every coefficient is 0"),
        ({"kv_bytes_per_token": 0}, "kv_bytes_per_token"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused_by_name(
    changes: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        make_profile(**changes)
    assert "a100-8b" in str(caught.value)
