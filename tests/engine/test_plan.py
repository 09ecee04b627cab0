"""Plans: what a step takes is what `next_chunk_tokens` allows, and remote requests get theirs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import A100_8B
from spillway.core.chunks import next_chunk_tokens
from spillway.core.controller import Controller
from spillway.core.latency import step_s, token_pairs
from spillway.engine.plan import Limits, Planner, StepPlan, limits_of
from spillway.engine.settings import EngineSettings
from spillway.engine.view import Prompt, StepView

SETTINGS = EngineSettings(tbt_margin_frac=0.9, skipped_steps_max=3)
BUDGET_S = 0.9 * 0.06


def planner(
    *, hits_possible: bool = False, step_tokens: int = 2048, decode_tokens_max: int = 1
) -> Planner:
    limits = limits_of(SETTINGS, step_tokens, decode_tokens_max)
    return Planner(Controller(A100_8B), SETTINGS, limits, hits_possible=hits_possible)


def prompt(context: int, remaining: int) -> Prompt:
    return Prompt(SimpleNamespace(), context, remaining)


def batch(seqs: int = 16, kv_tokens: int = 16_000, tbt_s: float = 0.06, **fields: int) -> StepView:
    return StepView(decode_seqs=seqs, kv_tokens=kv_tokens, tbt_s_min=tbt_s, **fields)  # type: ignore[arg-type]


def plan(
    view: StepView,
    begun: list[Prompt] | None = None,
    queued: list[Prompt] | None = None,
    by: Planner | None = None,
    late_s: float = 0.0,
) -> StepPlan | None:
    return (by or planner()).plan(view, begun or [], queued or [], view.decode_seqs, late_s)


def allowed(view: StepView, context: int, remaining: int, cap: int = 2032) -> int:
    return next_chunk_tokens(
        A100_8B, view.decode_seqs, view.kv_tokens, context, remaining, BUDGET_S, cap, 64
    )


def test_without_prompts_or_without_anybody_to_hurt_the_step_is_the_engines() -> None:
    assert plan(batch()) is None
    assert plan(batch(ready_seqs=2, unadmitted_seqs=3)) is None
    assert plan(StepView(), [prompt(0, 4000)]) is None
    assert plan(StepView(pulling_seqs=4), queued=[prompt(0, 4000)]) is None


@pytest.mark.parametrize("context", [0, 2000, 20_000])
def test_a_running_prompt_gets_the_largest_safe_chunk_and_no_token_more(context: int) -> None:
    view = batch()
    chunk = allowed(view, context, 4000)
    found = plan(view, [prompt(context, 4000)], [prompt(0, 100)])
    assert found is not None
    assert 0 < chunk < 2000
    assert [tokens for _, tokens in found.shares] == [chunk]
    assert (found.step_tokens, found.request_tokens_max) == (16 + chunk, chunk)
    assert found.admitted_prompts == 0
    assert found.budget_s == pytest.approx(BUDGET_S)


def test_queued_prompts_join_while_they_fit_whole_and_only_the_last_is_cut() -> None:
    found = plan(batch(), queued=[prompt(0, 100), prompt(0, 200), prompt(0, 4000), prompt(0, 10)])
    assert found is not None
    assert found.admitted_prompts == 3
    assert [tokens for _, tokens in found.shares][:2] == [100, 200]
    assert 0 < found.shares[2][1] < 4000
    assert found.step_tokens == 16 + sum(tokens for _, tokens in found.shares)


def test_one_prompt_that_ends_makes_room_for_the_next() -> None:
    found = plan(batch(), [prompt(3900, 100)], [prompt(0, 4000)])
    assert found is not None
    assert found.shares[0][1] == 100
    rest = allowed_behind(found)
    assert found.shares[1][1] == rest
    assert found.request_tokens_max == max(100, rest)


def allowed_behind(found: StepPlan) -> int:
    first, tokens = found.shares[0]
    spent_s = A100_8B.token_pair_s * token_pairs(tokens, first.context_tokens)
    return next_chunk_tokens(
        A100_8B, 16 + tokens, 16_000, 0, 4000, BUDGET_S - spent_s, 2032 - tokens, 64
    )


def test_remote_requests_get_their_tokens_on_top() -> None:
    view = batch(ready_seqs=3, ready_kv_tokens=3000, unadmitted_seqs=5)
    found = plan(view, [prompt(0, 4000)])
    assert found is not None
    chunk = found.shares[0][1]
    # One for each that is ready to join, and one more that lets the engine look at the others.
    assert found.step_tokens == 16 + 3 + 1 + chunk
    # They are in the step, so they count in its time.
    assert chunk == next_chunk_tokens(A100_8B, 19, 19_000, 0, 4000, BUDGET_S, 2028, 64)


def test_tokens_of_queued_prompts_suffice_to_look_at_remote_requests() -> None:
    found = plan(batch(unadmitted_seqs=5), queued=[prompt(0, 4000)])
    assert found is not None
    assert found.step_tokens == 16 + found.shares[0][1]


def test_remote_requests_alone_are_enough_to_leave_room_for() -> None:
    found = plan(StepView(unadmitted_seqs=1), [prompt(0, 9000)])
    assert found is not None
    assert found.budget_s == 0.0  # no stream limits it
    assert found.shares[0][1] == 1984
    assert found.step_tokens == 1985


def test_after_some_steps_without_a_safe_chunk_the_smallest_runs_all_the_same() -> None:
    by, view = planner(), batch(tbt_s=0.012)
    taken = []
    for _ in range(9):
        found = plan(view, [prompt(0, 4000)], by=by)
        assert found is not None
        taken.append(sum(tokens for _, tokens in found.shares))
    assert taken == [0, 0, 0, 64] * 2 + [0]
    assert by.forced_steps == 2


def test_without_a_safe_chunk_remote_requests_still_come_in() -> None:
    view = batch(tbt_s=0.012, ready_seqs=2, ready_kv_tokens=100, unadmitted_seqs=1)
    found = plan(view, [prompt(0, 4000)])
    assert found is not None
    # The running prompt takes one token of whatever is left, so one is there for it.
    assert [tokens for _, tokens in found.shares] == [1]
    assert found.step_tokens == 16 + 2 + 1 + 1
    queued = plan(view, queued=[prompt(0, 4000)])
    assert queued is not None
    assert (queued.shares, queued.admitted_prompts, queued.step_tokens) == ((), 0, 16 + 2 + 1)


def test_a_late_step_takes_less() -> None:
    early, late = (plan(batch(), [prompt(0, 4000)], late_s=late_s) for late_s in (0.0, 0.01))
    assert early is not None
    assert late is not None
    assert late.shares[0][1] < early.shares[0][1]


def test_a_prompt_whose_cached_prefix_is_unknown_is_sized_for_the_worst() -> None:
    known, unknown = (
        plan(batch(), queued=[prompt(0, 16_000)], by=planner(hits_possible=hits))
        for hits in (False, True)
    )
    assert known is not None
    assert unknown is not None
    assert 0 < unknown.shares[0][1] < known.shares[0][1]
    # Wherever the cached prefix ends, the step is safe.
    chunk = unknown.shares[0][1]
    assert step_s(A100_8B, 16, 16_000, chunk, 16_000 - chunk) <= BUDGET_S


def test_drafts_of_a_decode_are_never_cut() -> None:
    by = planner(decode_tokens_max=4)
    found = by.plan(batch(), [prompt(4000, 2)], [], 16 * 4, 0.0)
    assert found is not None
    assert found.request_tokens_max == 4
    assert found.step_tokens == 16 * 4 + 2


def test_limits_follow_the_engine_and_the_model() -> None:
    settings = EngineSettings(chunk_tokens_max=4096, chunk_tokens_multiple=48)
    assert limits_of(settings, 2048, 1, 32) == Limits(2048, 1, 2048, 64, 64)
    assert limits_of(EngineSettings(chunk_tokens_max=512, chunk_tokens_min=16), 2048) == Limits(
        2048, 1, 512, 64, 16
    )


def test_the_chunk_of_a_fresh_prompt_and_the_state_of_the_budget_can_be_asked() -> None:
    by = planner()
    assert by.chunk_now_tokens(StepView()) == 2048
    assert by.chunk_now_tokens(batch()) == allowed(batch(), 0, 1 << 30)
    assert not by.over_budget(batch())
    assert not by.over_budget(StepView())
    tight = batch(tbt_s=0.013)
    assert (by.over_budget(tight), by.chunk_now_tokens(tight)) == (True, 0)


sizes = st.integers(1, 8000)


@given(
    seqs=st.integers(1, 128),
    kv_each=st.integers(1, 4000),
    tbt_s=st.floats(0.012, 0.2),
    begun=st.lists(st.tuples(sizes, sizes), max_size=3),
    queued=st.lists(sizes, max_size=5),
    ready=st.integers(0, 3),
    unadmitted=st.integers(0, 3),
)
def test_a_plan_is_safe_and_leaves_everybody_else_room(
    seqs: int,
    kv_each: int,
    tbt_s: float,
    begun: list[tuple[int, int]],
    queued: list[int],
    ready: int,
    unadmitted: int,
) -> None:
    view = batch(seqs, seqs * kv_each, tbt_s, ready_seqs=ready, unadmitted_seqs=unadmitted)
    running, waiting = [prompt(*one) for one in begun], [prompt(0, one) for one in queued]
    found = plan(view, running, waiting)
    if not (begun or queued):
        assert found is None
        return
    assert found is not None
    tokens = sum(share for _, share in found.shares)
    assert found.step_tokens <= 2048
    assert found.step_tokens >= seqs + ready + tokens
    assert all(0 < share <= one.remaining_tokens for one, share in found.shares)
    # Every share but the last is taken whole, or all begun prompts share alike.
    if found.admitted_prompts:
        assert all(share == one.remaining_tokens for one, share in found.shares[:-1])
    toll = not tokens or all(share == 1 for _, share in found.shares)
    pairs = sum(token_pairs(share, one.context_tokens) for one, share in found.shares)
    if not toll:
        actual_s = step_s(A100_8B, seqs + ready + tokens, view.kv_tokens)
        assert actual_s + A100_8B.token_pair_s * pairs <= 0.9 * tbt_s + 1e-6
    # What the engine can hand to local prompts, whoever comes first, is what was planned.
    left = found.step_tokens - seqs - ready
    assert left - tokens <= (1 if unadmitted and not found.admitted_prompts else 0)
    if found.admitted_prompts == 0 and begun:
        given_tokens = [min(found.request_tokens_max, one.remaining_tokens) for one in running]
        assert sum(given_tokens) == tokens or not tokens
