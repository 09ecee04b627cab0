"""Chunk plans against their definition: the same thing done step by step."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import strategies as sp
from builders import A100_8B, make_profile
from spillway.core.chunks import (
    STEP_TOLERANCE_S,
    STEPS_MAX,
    ChunkPlan,
    drain_s,
    next_chunk_tokens,
    plan_chunks,
    plan_from_sizes,
)
from spillway.core.latency import LatencyProfile, step_s

SIZES = (2048, 1024, 512, 256, 128)
# The closed form and the walk round differently; a step this near its limit may go either way.
ROUNDING_S = 1e-12


def run_lengths(sizes: list[int]) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for size in sizes:
        if out and out[-1][0] == size:
            out[-1] = (size, out[-1][1] + 1)
        else:
            out.append((size, 1))
    return tuple(out)


def walk(
    profile: LatencyProfile,
    seqs: int,
    kv_tokens: int,
    context: int,
    prompt: int,
    budget_s: float,
    cap: int,
    multiple: int,
) -> tuple[list[int], list[float]] | None:
    """Ask for one chunk after the other, as an engine does whose batch stays as it is."""
    sizes: list[int] = []
    times_s: list[float] = []
    while prompt:
        chunk = next_chunk_tokens(
            profile, seqs, kv_tokens, context, prompt, budget_s, cap, multiple
        )
        if chunk == 0 or len(sizes) >= STEPS_MAX:
            return None
        sizes.append(chunk)
        times_s.append(step_s(profile, seqs, kv_tokens, chunk, context))
        prompt -= chunk
        context += chunk
        kv_tokens += seqs
    return sizes, times_s


batches = st.tuples(
    sp.profiles(),
    sp.decode_seqs,
    sp.kv_tokens,
    sp.context_tokens,
    sp.prompt_tokens,
    st.one_of(sp.budgets_s, sp.budgets_s, st.just(inf)),
    sp.caps_tokens,
    sp.multiples,
)


@pytest.mark.slow
@given(batches)
def test_a_plan_is_the_run_length_code_of_asking_step_by_step(batch: tuple) -> None:
    assume(batch[4] <= 3000 or batch[7] >= 16)  # keeps the walk short
    plan = plan_chunks(*batch)
    walked = walk(*batch)
    if walked is None:
        assert plan is None
        return
    assert plan is not None
    sizes, times_s = walked
    assert plan.chunks == run_lengths(sizes)
    assert plan.execute_s == pytest.approx(sum(times_s), rel=1e-9)
    assert plan.step_s_max == pytest.approx(max(times_s), rel=1e-9)
    assert plan.steps == len(sizes)


@pytest.mark.slow
@given(batches)
def test_inv_4_no_step_of_a_plan_exceeds_the_budget(batch: tuple) -> None:
    profile, seqs, kv_tokens, context, _, budget_s, _, _ = batch
    plan = plan_chunks(*batch)
    assume(plan is not None)
    assert plan is not None
    assert plan.step_s_max <= budget_s + STEP_TOLERANCE_S + ROUNDING_S
    done = at = 0
    for chunk, steps in plan.chunks:
        for step in {0, steps - 1}:  # a step's time rises while the size stays
            one_s = step_s(
                profile,
                seqs,
                kv_tokens + seqs * (at + step),
                chunk,
                context + done + chunk * step,
            )
            assert one_s <= budget_s + STEP_TOLERANCE_S + ROUNDING_S
        done += chunk * steps
        at += steps


@pytest.mark.slow
@given(batches, st.sampled_from((0, 1, 2, 3)))
def test_inv_5_the_chunks_sum_to_the_prompt_in_multiples(batch: tuple, sizes_max: int) -> None:
    *_, prompt, _, cap, multiple = batch
    plan = plan_chunks(*batch, sizes_max)
    assume(plan is not None)
    assert plan is not None
    assert plan.tokens == prompt
    assert plan.steps <= STEPS_MAX
    flat = [chunk for chunk, steps in plan.chunks for _ in range(steps)]
    assert all(chunk % multiple == 0 for chunk in flat[:-1])
    assert all(0 < chunk <= cap for chunk in flat)


@pytest.mark.slow
@given(batches)
def test_the_next_chunk_is_the_largest_safe_one(batch: tuple) -> None:
    profile, seqs, kv_tokens, context, prompt, budget_s, cap, multiple = batch
    chunk = next_chunk_tokens(*batch)
    allowed = [*range(multiple, min(prompt, cap) + 1, multiple)]
    if prompt <= cap:
        allowed.append(prompt)
    safe = [
        size
        for size in allowed
        if step_s(profile, seqs, kv_tokens, size, context) <= budget_s + STEP_TOLERANCE_S
    ]
    assert chunk == max(safe, default=0)


@pytest.mark.slow
@given(batches, st.floats(1.0, 3.0))
def test_inv_16_a_looser_budget_never_shortens_the_chunk(batch: tuple, factor: float) -> None:
    *head, budget_s, cap, multiple = batch
    tight = next_chunk_tokens(*head, budget_s, cap, multiple)
    assert next_chunk_tokens(*head, budget_s * factor, cap, multiple) >= tight


@pytest.mark.slow
@given(batches)
def test_a_coarse_plan_is_safe_and_not_much_slower(batch: tuple) -> None:
    """Fewer distinct sizes: what the router asks for, so that a decision costs the same always."""
    budget_s = batch[5]
    exact, coarse = plan_chunks(*batch), plan_chunks(*batch, 2)
    if exact is None:
        assert coarse is None
        return
    if coarse is None:
        return  # more and smaller steps let the batch grow further, at times too far
    assert coarse.tokens == exact.tokens
    assert coarse.step_s_max <= budget_s + STEP_TOLERANCE_S + ROUNDING_S
    assert coarse.execute_s <= 1.5 * exact.execute_s


@pytest.mark.parametrize("prompt", [30_000, 60_000, 120_000])
@pytest.mark.parametrize("budget_s", [0.036, 0.054, 0.09])
def test_a_long_prompt_that_an_exact_plan_can_serve_has_a_coarse_one_too(
    prompt: int, budget_s: float
) -> None:
    batch = (A100_8B, 20, 30_000, 0, prompt, budget_s, 2048, 64)
    exact, coarse = plan_chunks(*batch), plan_chunks(*batch, 2)
    assert (exact is None) == (coarse is None)
    if exact is not None and coarse is not None:
        assert len(coarse.chunks) <= 6
        assert coarse.execute_s <= 1.5 * exact.execute_s


def test_a_prompt_without_a_budget_is_cut_at_the_cap() -> None:
    plan = plan_chunks(A100_8B, 0, 0, 0, 5000, inf, 2048, 64)
    assert plan is not None
    assert plan.chunks == ((2048, 2), (904, 1))


def test_a_short_rest_is_taken_whole_whatever_the_multiple() -> None:
    plan = plan_chunks(A100_8B, 0, 0, 0, 5, 0.05, 2048, 64)
    assert plan == ChunkPlan(((5, 1),), step_s(A100_8B, 0, 0, 5), step_s(A100_8B, 0, 0, 5))


def test_a_batch_that_fills_the_budget_admits_no_plan() -> None:
    budget_s = step_s(A100_8B, 64, 200_000)
    assert plan_chunks(A100_8B, 64, 200_000, 0, 1000, budget_s, 2048, 64) is None


def test_a_budget_below_one_multiple_admits_no_plan() -> None:
    budget_s = step_s(A100_8B, 64, 0, 63)
    assert plan_chunks(A100_8B, 64, 0, 0, 1000, budget_s, 2048, 64) is None
    assert plan_chunks(A100_8B, 64, 0, 0, 63, budget_s, 2048, 64) is not None


def test_a_schedule_longer_than_the_bound_is_no_plan() -> None:
    assert plan_chunks(A100_8B, 0, 0, 0, STEPS_MAX * 16, inf, 16, 16) is not None
    assert plan_chunks(A100_8B, 0, 0, 0, STEPS_MAX * 16 + 1, inf, 16, 16) is None
    assert plan_from_sizes(A100_8B, 0, 0, STEPS_MAX * 16, inf, (16,)) is not None
    assert plan_from_sizes(A100_8B, 0, 0, STEPS_MAX * 16 + 1, inf, (16,)) is None


# --- the printed rule ------------------------------------------------------------------------


def printed_walk(
    profile: LatencyProfile, seqs: int, kv_tokens: int, prompt: int, budget_s: float
) -> list[int] | None:
    """Algorithm 1 as the ports print it: at every step the largest size that fits, clipped."""
    done = 0
    sizes: list[int] = []
    while done < prompt:
        for size in SIZES:
            chunk = min(size, prompt - done)
            if step_s(profile, seqs, kv_tokens + done, chunk, done) <= budget_s + STEP_TOLERANCE_S:
                break
        else:
            return None
        sizes.append(chunk)
        done += chunk
        if len(sizes) > STEPS_MAX:
            return None
    return sizes


@pytest.mark.slow
@given(sp.profiles(), sp.decode_seqs, sp.kv_tokens, sp.prompt_tokens, sp.budgets_s)
def test_the_printed_rule_is_its_literal_walk(
    profile: LatencyProfile, seqs: int, kv_tokens: int, prompt: int, budget_s: float
) -> None:
    plan = plan_from_sizes(profile, seqs, kv_tokens, prompt, budget_s, SIZES)
    sizes = printed_walk(profile, seqs, kv_tokens, prompt, budget_s)
    if sizes is None:
        assert plan is None
        return
    assert plan is not None
    assert plan.chunks == run_lengths(sizes)
    times_s, done = [], 0
    for chunk in sizes:
        times_s.append(step_s(profile, seqs, kv_tokens + done, chunk, done))
        done += chunk
    assert plan.execute_s == pytest.approx(sum(times_s), rel=1e-9)
    assert plan.step_s_max == pytest.approx(max(times_s), rel=1e-9)


def test_the_printed_rule_clips_a_larger_size_to_a_rest_that_fits() -> None:
    """512 does not fit, a rest of 300 does: one step, not 256 and 44."""
    budget_s = step_s(A100_8B, 100, 100_000, 320, 0)
    assert step_s(A100_8B, 100, 100_000, 512, 0) > budget_s
    plan = plan_from_sizes(A100_8B, 100, 100_000, 300, budget_s, SIZES)
    assert plan is not None
    assert plan.chunks == ((300, 1),)


def test_the_printed_rule_has_no_size_below_its_smallest() -> None:
    budget_s = step_s(A100_8B, 100, 100_000, 100, 0)
    assert plan_from_sizes(A100_8B, 100, 100_000, 1000, budget_s, SIZES) is None
    assert plan_from_sizes(A100_8B, 100, 100_000, 90, budget_s, SIZES) is not None


# --- draining a backlog ----------------------------------------------------------------------


def test_an_empty_backlog_drains_at_once_and_an_unsafe_one_never() -> None:
    assert drain_s(A100_8B, 10, 1000, 0, 0.0, 0.05, 2048, 64) == 0.0
    over_s = step_s(A100_8B, 64, 200_000)
    assert drain_s(A100_8B, 64, 200_000, 1000, 500_000.0, over_s, 2048, 64) == inf


@pytest.mark.slow
@given(batches)
def test_draining_one_prompt_takes_at_most_two_steps_more_than_its_plan(batch: tuple) -> None:
    """Where neither context nor batch makes a step longer, so that one size is the right size."""
    profile, _, kv_tokens, _, prompt, budget_s, cap, multiple = batch
    profile = make_profile(
        step_base_s=profile.step_base_s,
        token_hinges=profile.token_hinges,
        token_s=profile.token_s,
        token_pair_s=0.0,
    )
    batch = (profile, 0, kv_tokens, 0, prompt, budget_s, cap, multiple)
    plan = plan_chunks(*batch)
    took_s = drain_s(profile, 0, kv_tokens, prompt, 0.0, budget_s, cap, multiple)
    if plan is None:
        assert took_s > 0
        return
    # It charges the last step as a full one, and cuts a rest that the plan takes whole, which is
    # longer than its two parts where steps bend upwards.
    least_s = plan.execute_s * (1 - 1e-9) - plan.step_s_max
    assert least_s <= took_s <= plan.execute_s + 2 * plan.step_s_max


@pytest.mark.slow
@given(batches, st.integers(1, 20_000))
def test_a_longer_backlog_never_drains_sooner(batch: tuple, more: int) -> None:
    profile, seqs, kv_tokens, context, prompt, budget_s, cap, multiple = batch
    rest = (budget_s, cap, multiple)
    short_s = drain_s(profile, seqs, kv_tokens, prompt, float(prompt * context), *rest)
    longer = prompt + more
    long_s = drain_s(profile, seqs, kv_tokens, longer, float(longer * context), *rest)
    assert long_s >= short_s - profile.step_base_s


def test_a_flat_law_does_not_stall_the_planner() -> None:
    flat = make_profile(token_hinges=(0,), token_s=(0.0,), token_pair_s=0.0, kv_token_s=0.0)
    plan = plan_chunks(flat, 5, 0, 0, 10_000, 0.05, 2048, 64)
    assert plan is not None
    assert plan.chunks == ((2048, 4), (1808, 1))
