"""What a workload looks like: how its requests arrive, how long they are, how much they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import StatisticsError, correlation, fmean, median, pstdev, pvariance

import msgspec

from spillway.core.errors import ConfigError
from spillway.stats import percentile
from spillway.workload.row import Row

WINDOWS_S = (1.0, 10.0, 60.0)
LONG_CONTEXT_TOKENS = 32_768  # the context of many served models
LONGEST_FRAC = 0.05


class LengthFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Of prompts or of outputs, all in tokens."""

    total: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: int


class Burstiness(msgspec.Struct, frozen=True, kw_only=True):
    """Of counts in tumbling windows of `window_s`.

    peak_over_mean: the fullest window over the mean one; tokens_peak_over_mean: the same of prompt
    tokens. dispersion: variance of the counts over their mean, 1 for a Poisson process at any
    window (Cox and Lewis 1966, index of dispersion of counts).
    """

    window_s: float
    peak_over_mean: float
    dispersion: float
    tokens_peak_over_mean: float


class WorkloadFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The statistics of a workload. A figure that has no meaning for it is None.

    span_s: first to last arrival.   gap_cv: standard deviation of the gaps between arrivals over
    their mean, 1 for a Poisson process.   prompt_output_ratio: of all tokens;
    median_ratio: the median over requests.   pearson_correlation, spearman_correlation: of a
    request's prompt and output length.
    longest_share_frac: of the prompt tokens, in the longest 5 % of prompts.
    beyond_32k_frac: of the requests, whose prompt and output are longer together.
    shared_prefix_frac: of the prompt tokens, what a cache without a limit holds on arrival.
    """

    requests: int
    sessions: int
    span_s: float
    rate_per_s: float | None
    prompt_tokens_per_s: float | None
    gap_cv: float | None
    burstiness: list[Burstiness]
    prompt_tokens: LengthFigures
    output_tokens: LengthFigures
    prompt_output_ratio: float
    median_ratio: float
    pearson_correlation: float | None
    spearman_correlation: float | None
    longest_share_frac: float
    beyond_32k_frac: float
    shared_prefix_frac: float | None


def describe(rows: Sequence[Row]) -> WorkloadFigures:
    """Return the statistics of rows in order of arrival. Cost O(rows log rows + prefix blocks).

    Raises ConfigError without rows.
    """
    if not rows:
        raise ConfigError("a workload without requests has no statistics")
    prompts, outputs = [row.prompt_tokens for row in rows], [row.output_tokens for row in rows]
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    gaps_s = [later.arrival_s - earlier.arrival_s for earlier, later in pairwise(rows)]
    longest = sorted(prompts)[-max(1, round(LONGEST_FRAC * len(rows))) :]
    beyond = sum(row.prompt_tokens + row.output_tokens > LONG_CONTEXT_TOKENS for row in rows)
    return WorkloadFigures(
        requests=len(rows),
        sessions=len({row.session_id for row in rows if row.session_id}),
        span_s=span_s,
        rate_per_s=len(rows) / span_s if span_s > 0 else None,
        prompt_tokens_per_s=sum(prompts) / span_s if span_s > 0 else None,
        gap_cv=pstdev(gaps_s) / fmean(gaps_s) if span_s > 0 else None,
        burstiness=[_burstiness(rows, window_s) for window_s in WINDOWS_S if span_s >= window_s],
        prompt_tokens=_lengths(prompts),
        output_tokens=_lengths(outputs),
        prompt_output_ratio=sum(prompts) / sum(outputs),
        median_ratio=median(row.prompt_tokens / row.output_tokens for row in rows),
        pearson_correlation=_correlation(prompts, outputs),
        spearman_correlation=_correlation(_ranks(prompts), _ranks(outputs)),
        longest_share_frac=sum(longest) / sum(prompts),
        beyond_32k_frac=beyond / len(rows),
        shared_prefix_frac=shared_prefix_frac(rows),
    )


def shared_prefix_frac(rows: Iterable[Row]) -> float | None:
    """Return the share of prompt tokens that an unlimited prefix cache holds on arrival.

    Counted from the front of each prompt to its first block that no request before it had; the
    answers of earlier turns count where the trace gives them blocks. None when no row has blocks.
    """
    seen: set[int] = set()
    total = shared = 0
    for row in rows:
        total += row.prompt_tokens
        blocks = 0
        for block_id in row.prefix_blocks:
            if block_id not in seen:
                break
            blocks += 1
        shared += min(blocks * row.block_tokens, row.prompt_tokens)
        seen.update(row.prefix_blocks)
    return shared / total if seen else None


def _burstiness(rows: Sequence[Row], window_s: float) -> Burstiness:
    """Windows start with the first arrival; an incomplete one at the end is left out."""
    start_s = rows[0].arrival_s
    whole = int((rows[-1].arrival_s - start_s) // window_s)
    counts, tokens = [0] * whole, [0] * whole
    for row in rows:
        at = int((row.arrival_s - start_s) // window_s)
        if at < whole:
            counts[at] += 1
            tokens[at] += row.prompt_tokens
    return Burstiness(
        window_s=window_s,
        peak_over_mean=max(counts) / fmean(counts),
        dispersion=pvariance(counts) / fmean(counts),
        tokens_peak_over_mean=max(tokens) / fmean(tokens),
    )


def _lengths(tokens: Sequence[int]) -> LengthFigures:
    ordered = sorted(tokens)
    return LengthFigures(
        total=sum(ordered),
        mean=fmean(ordered),
        p50=percentile(ordered, 0.5),
        p95=percentile(ordered, 0.95),
        p99=percentile(ordered, 0.99),
        max=ordered[-1],
    )


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    try:
        return correlation(first, second)
    except StatisticsError:  # fewer than two, or all equal
        return None


def _ranks(values: Sequence[int]) -> list[float]:
    """Return each value's rank, equal values sharing their mean rank."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for at in order[start:end]:
            ranks[at] = (start + end - 1) / 2
        start = end
    return ranks
