"""Chunk sizes that keep every step inside a time budget, in closed form.

Two uses of one formula. The engine asks at every step for the largest safe chunk of the real
batch (`next_chunk_tokens`). The router asks what that would come to for a whole prompt on a batch
that stays as it is (`plan_chunks`): the result is exactly the run-length code of asking step by
step, found in O(number of distinct chunk sizes) because a step's time grows linearly while the
chunk size is fixed. `plan_from_sizes` is the printed rule of Kairos (arXiv 2607.02043, Algorithm 1
as the public ports read it): the largest of a few profiled sizes, step after step.
"""

from __future__ import annotations

from math import ceil, inf
from typing import NamedTuple

from spillway.core.latency import LatencyProfile, chunk_tokens_max, step_s, tokens_s

# A closed-form root rounds; a step is over budget only beyond this.
STEP_TOLERANCE_S = 1e-9
# A schedule longer than this is not worth having (the printed rule guards at the same count).
STEPS_MAX = 4096


class ChunkPlan(NamedTuple):
    """A chunk schedule. chunks: ((chunk_tokens, steps), ...) in order of execution.

    execute_s: sum of all its step times.  step_s_max: its slowest step.
    """

    chunks: tuple[tuple[int, int], ...]
    execute_s: float
    step_s_max: float

    @property
    def tokens(self) -> int:
        """Return the prompt tokens the plan computes."""
        return sum(chunk * steps for chunk, steps in self.chunks)

    @property
    def steps(self) -> int:
        """Return the number of engine steps the plan takes."""
        return sum(steps for _, steps in self.chunks)


def next_chunk_tokens(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    context_tokens: int,
    remaining_tokens: int,
    budget_s: float,
    chunk_tokens_cap: int,
    chunk_tokens_multiple: int,
) -> int:
    """Return the largest chunk whose step stays within `budget_s`; 0 when none does.

    The rest of a prompt is taken whole when it fits; any other chunk is a multiple of
    `chunk_tokens_multiple`, at most `chunk_tokens_cap`. Cost O(hinges).
    """
    limit = _limit_tokens(
        profile, decode_seqs, kv_tokens, context_tokens, budget_s, chunk_tokens_cap
    )
    return _quantised(limit, remaining_tokens, chunk_tokens_multiple)


def plan_chunks(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    context_tokens: int,
    prompt_tokens: int,
    budget_s: float,
    chunk_tokens_cap: int,
    chunk_tokens_multiple: int,
    sizes_max: int = 0,
) -> ChunkPlan | None:
    """Return the schedule that `next_chunk_tokens` gives step by step, or None if it gets stuck.

    The batch is held as it is: `decode_seqs` sequences, each adding one KV token per step;
    `context_tokens` of the prompt are already there (a cached prefix), `prompt_tokens` are to be
    computed. Every step is within `budget_s` (INV-4) and the chunks sum to the prompt (INV-5).
    sizes_max > 0 coarsens the multiple until about that many distinct sizes remain, so that a
    decision costs the same for a prompt of 32k tokens as for one of 1k; 0 is exact.
    """
    limit = _limit_tokens(
        profile, decode_seqs, kv_tokens, context_tokens, budget_s, chunk_tokens_cap
    )
    if prompt_tokens <= limit:
        only_s = step_s(profile, decode_seqs, kv_tokens, prompt_tokens, context_tokens)
        return ChunkPlan(((prompt_tokens, 1),), only_s, only_s)
    multiple = chunk_tokens_multiple
    if sizes_max:
        multiple *= _coarsening(profile, limit, prompt_tokens, multiple * sizes_max)
    if limit < multiple:
        return None
    chunk = int(limit) // multiple * multiple
    return _run_lengths(
        profile,
        decode_seqs,
        kv_tokens,
        context_tokens,
        prompt_tokens,
        budget_s + STEP_TOLERANCE_S,
        chunk,
        multiple,
        chunk_tokens_multiple,
        chunk_tokens_cap,
    )


def _run_lengths(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    context_tokens: int,
    prompt_tokens: int,
    limit_s: float,
    first_chunk_tokens: int,
    multiple: int,
    multiple_min: int,
    cap_tokens: int,
) -> ChunkPlan | None:
    """Return the schedule that starts with that chunk, in one pass over the distinct sizes.

    `multiple` is halved towards `multiple_min` where not even one of it is safe any more.
    """
    pair_s, kv_token_s = profile.token_pair_s, profile.kv_token_s
    alone_s = profile.step_base_s + profile.decode_seq_s * decode_seqs
    fixed_s = alone_s + kv_token_s * kv_tokens
    growth_s = kv_token_s * decode_seqs
    chunks: list[tuple[int, int]] = []
    execute_s = step_s_max = 0.0
    steps_total, chunk = 0, first_chunk_tokens
    while steps_total < STEPS_MAX:
        size = chunk
        if prompt_tokens <= chunk:
            size = prompt_tokens
        elif prompt_tokens < chunk + multiple and prompt_tokens <= cap_tokens:
            # The rest of the prompt is taken whole where that fits, be it no multiple.
            rest_s = step_s(profile, decode_seqs, 0, prompt_tokens, context_tokens)
            if rest_s + fixed_s - alone_s <= limit_s:
                size = prompt_tokens
        first_s = fixed_s + tokens_s(profile, decode_seqs + size)
        first_s += pair_s * size * (context_tokens + (size + 1) / 2)
        if first_s > limit_s:
            if chunk > multiple:
                chunk -= multiple
            elif multiple > multiple_min:
                chunk = multiple = multiple // multiple_min // 2 * multiple_min
            else:
                return None
            continue
        if size == prompt_tokens:
            _append(chunks, size, 1)
            return ChunkPlan(tuple(chunks), execute_s + first_s, max(step_s_max, first_s))
        # Up to where the rest may fit whole: from there on the size is looked at again.
        steps = (prompt_tokens - multiple) // size or 1
        slope_s = growth_s + pair_s * size * size
        last_s = first_s + slope_s * (steps - 1)
        if last_s > limit_s:
            steps = int((limit_s - first_s) / slope_s) + 1
            last_s = first_s + slope_s * (steps - 1)
        execute_s += steps * (first_s + last_s) / 2
        step_s_max = max(step_s_max, last_s)
        _append(chunks, size, steps)
        steps_total += steps
        prompt_tokens -= size * steps
        context_tokens += size * steps
        fixed_s += growth_s * steps
    return None


def plan_from_sizes(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    prompt_tokens: int,
    budget_s: float,
    sizes_tokens: tuple[int, ...],
) -> ChunkPlan | None:
    """Return the printed rule's schedule from descending `sizes_tokens`, or None if infeasible.

    Source:  arXiv 2607.02043, Algorithm 1, in the reading of the public ports.
    Formula: at each step the largest size, clipped to the rest, with
             T_d(B, KV + done, chunk, done) <= budget; B constant, KV grows by the prompt itself.
    """
    chunks: list[tuple[int, int]] = []
    execute_s = step_s_max = 0.0
    done = at = steps_total = 0
    limit_s = budget_s + STEP_TOLERANCE_S
    while done < prompt_tokens:
        rest = prompt_tokens - done
        chunk = min(sizes_tokens[at], rest)
        steps_max = max(1, rest // chunk)
        if at and chunk < rest:
            # Clipped to the rest, the next larger size may fit where in full it does not.
            larger = sizes_tokens[at - 1]
            steps_max = max(1, (rest - larger) // chunk + 1)
            if rest < larger:
                rest_s = step_s(profile, decode_seqs, kv_tokens + done, rest, done)
                chunk = rest if rest_s <= limit_s else chunk
        first_s = step_s(profile, decode_seqs, kv_tokens + done, chunk, done)
        if first_s > limit_s:
            at += 1
            if at == len(sizes_tokens):
                return None
            continue
        slope_s = chunk * (profile.kv_token_s + profile.token_pair_s * chunk)
        steps = _steps_within(first_s, slope_s, budget_s, steps_max)
        last_s = first_s + slope_s * (steps - 1)
        execute_s += steps * (first_s + last_s) / 2
        step_s_max = max(step_s_max, last_s)
        _append(chunks, chunk, steps)
        steps_total += steps
        if steps_total > STEPS_MAX:
            return None
        done += chunk * steps
    return ChunkPlan(tuple(chunks), execute_s, step_s_max)


def drain_s(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    backlog_tokens: int,
    backlog_token_pairs: float,
    budget_s: float,
    chunk_tokens_cap: int,
    chunk_tokens_multiple: int,
) -> float:
    """Return the seconds a decode node needs for a backlog of prompts beside its batch.

    Every token is charged the backlog's mean context, so one chunk size serves for all of it: an
    estimate for a queue ahead, in O(1). inf when no chunk is safe.
    """
    if backlog_tokens <= 0:
        return 0.0
    mean_context = int(backlog_token_pairs / backlog_tokens)
    chunk = next_chunk_tokens(
        profile,
        decode_seqs,
        kv_tokens,
        mean_context,
        backlog_tokens,
        budget_s,
        chunk_tokens_cap,
        chunk_tokens_multiple,
    )
    if chunk == 0:
        return inf
    steps = ceil(backlog_tokens / chunk)
    plain_s = profile.step_base_s + profile.decode_seq_s * decode_seqs
    plain_s += tokens_s(profile, decode_seqs + chunk)
    return (
        steps * (plain_s + profile.kv_token_s * kv_tokens)
        + profile.token_pair_s * backlog_token_pairs
    )


def _limit_tokens(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    context_tokens: int,
    budget_s: float,
    chunk_tokens_cap: int,
) -> float:
    if budget_s == inf:
        return chunk_tokens_cap
    fits = chunk_tokens_max(
        profile, decode_seqs, kv_tokens, context_tokens, budget_s + STEP_TOLERANCE_S
    )
    return fits if fits < chunk_tokens_cap else chunk_tokens_cap


def _coarsening(
    profile: LatencyProfile, first_tokens: float, prompt_tokens: int, span_tokens: int
) -> int:
    """Return by how much to coarsen the multiple so that the sizes in use span `span_tokens`.

    A chunk shrinks from c to about c·slope/(slope + a_attn·prompt) as its context grows.
    """
    slope_s = profile.hinge_slope_s[-1]
    shrink_s = profile.token_pair_s * prompt_tokens
    if shrink_s <= 0.0:
        return 1
    return max(1, ceil(first_tokens * shrink_s / (slope_s + shrink_s) / span_tokens))


def _quantised(limit_tokens: float, remaining_tokens: int, chunk_tokens_multiple: int) -> int:
    if remaining_tokens <= limit_tokens:
        return remaining_tokens
    if limit_tokens < chunk_tokens_multiple:
        return 0
    return int(limit_tokens) // chunk_tokens_multiple * chunk_tokens_multiple


def _append(chunks: list[tuple[int, int]], chunk_tokens: int, steps: int) -> None:
    if chunks and chunks[-1][0] == chunk_tokens:
        steps += chunks.pop()[1]
    chunks.append((chunk_tokens, steps))


def _steps_within(first_s: float, slope_s: float, budget_s: float, steps_max: int) -> int:
    """Return how many steps of a linearly growing time stay within the budget; at least 1."""
    if steps_max <= 1 or first_s + slope_s * (steps_max - 1) <= budget_s + STEP_TOLERANCE_S:
        return steps_max
    return max(1, int((budget_s + STEP_TOLERANCE_S - first_s) / slope_s) + 1)
