"""What kinds of step there are: the words in which an error is located, and what a repeat is."""

from __future__ import annotations

from enum import StrEnum
from math import log, log1p
from typing import NamedTuple

from spillway.calib.samples import Sample

CHUNK_SMALL_TOKENS_MAX = 256
CONTEXT_BOUNDS_TOKENS = (512, 2048, 8192)
INDEX_LOG_WIDTH = log(1.1)  # contexts within 10 % count as the same


class Regime(StrEnum):
    """What a step computes."""

    DECODE = "decode only"
    SMALL = f"mixed, chunk up to {CHUNK_SMALL_TOKENS_MAX}"
    LARGE = f"mixed, chunk above {CHUNK_SMALL_TOKENS_MAX}"
    PREFILL = "prefill only"


class Region(NamedTuple):
    """A regime and a range of contexts."""

    regime: Regime
    context: str

    def __str__(self) -> str:
        return f"{self.regime}, {self.context}"


class Shape(NamedTuple):
    """Steps of one shape are repeats of each other, but for the context's slow growth."""

    decode_seqs: int
    prefill_tokens: int
    kv_index: int
    context_index: int


def regime(sample: Sample) -> Regime:
    """Return the kind of step."""
    if not sample.prefill_tokens:
        return Regime.DECODE
    if not sample.decode_seqs:
        return Regime.PREFILL
    return Regime.SMALL if sample.prefill_tokens <= CHUNK_SMALL_TOKENS_MAX else Regime.LARGE


def region(sample: Sample) -> Region:
    """Return where a sample belongs when errors are looked at by kind and context."""
    return Region(regime(sample), context_range(sample))


def context_range(sample: Sample) -> str:
    """Return the range that the sample's longest context lies in, in words."""
    tokens = context_tokens(sample)
    below = 0
    for bound in CONTEXT_BOUNDS_TOKENS:
        if tokens <= bound:
            return f"context {below:,} to {bound:,}" if below else f"context up to {bound:,}"
        below = bound
    return f"context above {below:,}"


def context_ranges() -> tuple[str, ...]:
    """Return every range there is, ascending."""
    bounds = (*CONTEXT_BOUNDS_TOKENS, CONTEXT_BOUNDS_TOKENS[-1] + 1)
    probes = [Sample(decode_seqs=1, kv_tokens=tokens, step_s=1.0) for tokens in bounds]
    return tuple(context_range(probe) for probe in probes)


def context_tokens(sample: Sample) -> float:
    """Return the longer of the mean context of the decodes and that of the prompt chunks."""
    decode = sample.kv_tokens / sample.decode_seqs if sample.decode_seqs else 0.0
    return max(decode, chunk_context_tokens(sample))


def chunk_context_tokens(sample: Sample) -> float:
    """Return the context before the chunk, the inverse of `core.latency.token_pairs`.

    For several chunks in one step it is a mean, and at least 0.
    """
    tokens = sample.prefill_tokens
    if not tokens:
        return 0.0
    return max(0.0, sample.prefill_token_pairs / tokens - (tokens + 1) / 2)


def shape(sample: Sample) -> Shape:
    """Return the sample's shape."""
    return Shape(
        sample.decode_seqs,
        sample.prefill_tokens,
        _index(sample.kv_tokens),
        _index(chunk_context_tokens(sample)),
    )


def _index(tokens: float) -> int:
    return round(log1p(tokens) / INDEX_LOG_WIDTH)
