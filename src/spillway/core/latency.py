"""How long an engine step takes: the one formula that every estimate and every guard rests on.

    T = a0 + a_seq·b + f(n) + a_kv·K + a_attn·Σ c_i·(p_i + (c_i + 1)/2),      n = b + Σ c_i

b: sequences in decode, K: their resident KV tokens, (c_i, p_i): prefill chunk i and the context
computed before it. a_seq is what a sequence in decode costs beside its one token: sampling, and its
own turn in attention and in the engine's books; 0 where a GPU hides it, as much as two tokens on a
processor (docs/validation.md). `f` is continuous, increasing and piecewise linear in the scheduled
tokens n: one slope is the classical additive law (Kairos ports, arXiv 2607.02043); further hinges
hold the knee where a GPU leaves its memory-bound or graph-captured range, which bends upwards, and
the experts that a growing batch of a mixture-of-experts model has to read, which bends downwards. T
is linear in the tokens already processed when the chunk size is fixed, which makes `chunks.py`
closed-form; that it never falls is what makes the largest safe chunk unique.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from math import isfinite, sqrt

from spillway.core.errors import ConfigError

ROUNDING_S = 1e-12  # per token: slopes that should add up to 0 may miss it by this


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProfile:
    """Coefficients of the step-time law of one model on one GPU (or tensor-parallel group).

    name: shown in reports.                          step_base_s: a0, seconds per step.
    token_hinges: ascending token counts, first 0.   token_s: slope added at each hinge, s/token,
        negative where f flattens; the slopes that result are not.
    kv_token_s: a_kv, s per resident KV token.       token_pair_s: a_attn, s per (token x context).
    decode_seq_s: a_seq, s per sequence in decode.
    kv_bytes_per_token: size of one token's KV, from the model's configuration.

    Raises ConfigError on a non-finite or missing coefficient, or a step that gets shorter.
    """

    name: str
    step_base_s: float
    token_hinges: tuple[int, ...]
    token_s: tuple[float, ...]
    kv_token_s: float
    token_pair_s: float
    kv_bytes_per_token: int
    decode_seq_s: float = 0.0
    # Derived once: f at each hinge, and the slope that holds from that hinge on.
    hinge_value_s: tuple[float, ...] = field(init=False, repr=False, compare=False)
    hinge_slope_s: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check(self)
        values, slopes, value, slope, before = [], [], 0.0, 0.0, 0
        for hinge, added in zip(self.token_hinges, self.token_s, strict=True):
            value += slope * (hinge - before)
            slope = max(0.0, slope + added)
            before = hinge
            values.append(value)
            slopes.append(slope)
        object.__setattr__(self, "hinge_value_s", tuple(values))
        object.__setattr__(self, "hinge_slope_s", tuple(slopes))


def _check(profile: LatencyProfile) -> None:
    where = f"profile {profile.name!r}"
    for name in ("step_base_s", "decode_seq_s", "kv_token_s", "token_pair_s"):
        value = getattr(profile, name)
        if not isfinite(value) or value < 0:
            raise ConfigError(f"{where}: {name} is {value}; it must be a finite number >= 0")
    hinges = profile.token_hinges
    if not hinges or hinges[0] != 0 or list(hinges) != sorted(set(hinges)):
        raise ConfigError(f"{where}: token_hinges is {hinges}; it must ascend and start at 0")
    if len(profile.token_s) != len(hinges):
        raise ConfigError(f"{where}: token_s needs one slope per hinge, {len(hinges)}")
    slopes_s = tuple(accumulate(profile.token_s))
    if any(not isfinite(slope_s) or slope_s < -ROUNDING_S for slope_s in slopes_s):
        raise ConfigError(
            f"{where}: token_s is {profile.token_s}; a step with more tokens must not be shorter, "
            "so no sum of the first slopes may be negative"
        )
    if profile.step_base_s + max(slopes_s) <= 0:
        raise ConfigError(f"{where}: every coefficient is 0; a step must take time")
    if profile.kv_bytes_per_token < 1:
        raise ConfigError(f"{where}: kv_bytes_per_token must be at least 1")


def tokens_s(profile: LatencyProfile, scheduled_tokens: int) -> float:
    """Return f(n), the seconds that n scheduled tokens add to a step. O(log hinges)."""
    hinges = profile.token_hinges
    at = bisect_right(hinges, scheduled_tokens) - 1
    return profile.hinge_value_s[at] + profile.hinge_slope_s[at] * (scheduled_tokens - hinges[at])


def step_s(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    chunk_tokens: int = 0,
    chunk_context_tokens: int = 0,
) -> float:
    """Return T for a step of `decode_seqs` decodes over `kv_tokens`, with at most one chunk.

    Formula: module docstring. Several chunks: add `chunk_attention_s` of each further one and
    count its tokens in `scheduled` through `tokens_s`.
    """
    total_s = (
        profile.step_base_s
        + profile.decode_seq_s * decode_seqs
        + tokens_s(profile, decode_seqs + chunk_tokens)
        + profile.kv_token_s * kv_tokens
    )
    if chunk_tokens:
        total_s += profile.token_pair_s * token_pairs(chunk_tokens, chunk_context_tokens)
    return total_s


def token_pairs(chunk_tokens: int, context_tokens: int) -> float:
    """Return c·(p + (c+1)/2): how many (token, attended token) pairs a chunk computes.

    Additive over consecutive chunks of one prompt, so it measures a prompt's attention work
    whatever its chunking.
    """
    return chunk_tokens * (context_tokens + (chunk_tokens + 1) / 2)


def prefill_s(
    profile: LatencyProfile, prompt_tokens: int, pairs: float, step_tokens_max: int
) -> float:
    """Return the seconds a prefill node needs for `prompt_tokens` in FIFO steps of a full budget.

    `pairs` is the attention work of those tokens (`token_pairs`). Prompts are packed back to back,
    as chunked prefill does, so the sum over an ordered backlog has this closed form: full steps of
    `step_tokens_max` and one partial step. Cost O(1).
    """
    if prompt_tokens <= 0:
        return 0.0
    full_steps, rest_tokens = divmod(prompt_tokens, step_tokens_max)
    total_s = full_steps * (profile.step_base_s + tokens_s(profile, step_tokens_max))
    if rest_tokens:
        total_s += profile.step_base_s + tokens_s(profile, rest_tokens)
    return total_s + profile.token_pair_s * pairs


def chunk_tokens_max(
    profile: LatencyProfile,
    decode_seqs: int,
    kv_tokens: int,
    chunk_context_tokens: int,
    budget_s: float,
) -> float:
    """Return the largest real chunk size c >= 0 with step_s(...) <= budget_s, or -1.0 if none.

    Solves one quadratic on the linear piece of f where the budget is met: a_attn/2·c² + B·c + C = 0
    with B = slope + a_attn·(p + 1/2). Cost O(hinges).
    """
    fixed_s = profile.step_base_s + profile.decode_seq_s * decode_seqs
    fixed_s += profile.kv_token_s * kv_tokens
    half_pair_s = profile.token_pair_s / 2
    pair_context_s = profile.token_pair_s * (chunk_context_tokens + 0.5)
    hinges, values, slopes = (
        profile.token_hinges,
        profile.hinge_value_s,
        profile.hinge_slope_s,
    )
    # Walk down from the last piece to the one whose left end still meets the budget.
    first = bisect_right(hinges, decode_seqs) - 1
    for at in range(len(hinges) - 1, first - 1, -1):
        left = hinges[at] - decode_seqs if at > first else 0
        base_s = fixed_s + values[at] + slopes[at] * (decode_seqs - hinges[at])
        linear_s = slopes[at] + pair_context_s
        if base_s + (half_pair_s * left + linear_s) * left <= budget_s:
            return _largest_root(half_pair_s, linear_s, base_s - budget_s)
    return -1.0


def _largest_root(square: float, linear: float, constant: float) -> float:
    """Return the larger root of square·c² + linear·c + constant, for square, linear >= 0."""
    if square == 0.0:
        return -constant / linear if linear > 0.0 else float("inf")
    # The form that does not cancel when the square term is tiny beside the linear one.
    return -2.0 * constant / (linear + sqrt(linear * linear - 4.0 * square * constant))
