"""What a fixed chunk does to a decode node's streams, and which setting keeps them in time.

A stock engine computes a deflected prompt in chunks of one size, whatever else is in the batch.
The questions here are those that the policies ask of a live batch (`placement.plan_within`), asked
of a batch that an operator expects, by the same chunk plans.
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from spillway.core.chunks import STEP_TOLERANCE_S, plan_chunks
from spillway.core.latency import LatencyProfile, step_s

CHUNK_TOKENS_MAX = 8192  # engines are not started with larger steps
THRESHOLD_TOKENS_MULTIPLE = 16
SEQS_SEARCHED_MAX = 65_536


class ExpectedBatch(NamedTuple):
    """The load that a setting has to bear.

    context_tokens: KV of each stream.  prompt_tokens: length of the prompt that is deflected.
    """

    decode_seqs: int
    context_tokens: int
    prompt_tokens: int

    @property
    def kv_tokens(self) -> int:
        """Return the KV tokens of all streams."""
        return self.decode_seqs * self.context_tokens


class StockFlags(NamedTuple):
    """Start-up settings of a stock decode engine, under vLLM's names.

    long_prefill_token_threshold: 0 leaves it unset.
    """

    max_num_batched_tokens: int
    long_prefill_token_threshold: int
    max_num_seqs: int


def worst_step_s(profile: LatencyProfile, batch: ExpectedBatch, chunk_tokens: int) -> float:
    """Return the longest step while the prompt runs in chunks of that size: inf if out of bounds.

    The last full chunk attends to the most context. Cost O(1).
    """
    plan = plan_chunks(
        profile,
        batch.decode_seqs,
        batch.kv_tokens,
        0,
        batch.prompt_tokens,
        inf,
        min(chunk_tokens, batch.prompt_tokens),
        1,
    )
    return inf if plan is None else plan.step_s_max


def decode_step_s(profile: LatencyProfile, batch: ExpectedBatch) -> float:
    """Return the step of the streams alone."""
    return step_s(profile, batch.decode_seqs, batch.kv_tokens)


def safe_chunk_tokens(
    profile: LatencyProfile, batch: ExpectedBatch, budget_s: float, chunk_tokens_multiple: int
) -> int:
    """Return the largest multiple whose worst step is within `budget_s`; 0 when none is."""
    largest = CHUNK_TOKENS_MAX // chunk_tokens_multiple * chunk_tokens_multiple
    for chunk_tokens in range(largest, 0, -chunk_tokens_multiple):
        if worst_step_s(profile, batch, chunk_tokens) <= budget_s + STEP_TOLERANCE_S:
            return chunk_tokens
    return 0


def safe_seqs(
    profile: LatencyProfile, batch: ExpectedBatch, budget_s: float, chunk_tokens: int
) -> int:
    """Return beside how many streams of that context the chunk is safe; -1: beside none at all.

    A step only grows with its streams, so the bound is found by bisection.
    """
    low, high = -1, SEQS_SEARCHED_MAX
    while high - low > 1:
        middle = (low + high) // 2
        worst_s = worst_step_s(profile, batch._replace(decode_seqs=middle), chunk_tokens)
        if worst_s <= budget_s + STEP_TOLERANCE_S:
            low = middle
        else:
            high = middle
    return low


def recommended_flags(chunk_tokens: int, decode_seqs: int, seqs_max: int) -> StockFlags:
    """Return the settings by which no step computes more than `chunk_tokens` prompt tokens.

    The step's limit is the bound: the threshold caps one prompt, and several may be under way. It
    is set lower, by room for the streams and as many that join, because vLLM admits a request whose
    KV is to be pulled only while the step has tokens left, and a prompt without a cap takes them
    all. vLLM refuses to start with fewer tokens per step than sequences.
    """
    room_tokens = min(2 * decode_seqs, chunk_tokens // 2)
    threshold = chunk_tokens - room_tokens
    threshold -= threshold % THRESHOLD_TOKENS_MULTIPLE
    return StockFlags(chunk_tokens, threshold, min(seqs_max, chunk_tokens))
