"""The JSON that `spillway demo`, `simulate` and `load` write: one object per policy run.

Documented for users in docs/results.md; a change here bumps RESULTS_SCHEMA_VERSION and goes into
CHANGELOG.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from spillway.core.errors import InvariantViolation
from spillway.stats import GapHistogram, percentile
from spillway.wire.records import RequestRecord
from spillway.wire.tally import Tally

RESULTS_SCHEMA_VERSION = 1


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """arrived = finished + failed + rejected + cancelled once a run is over."""

    arrived: int
    finished: int
    failed: int
    rejected: int
    cancelled: int


class TtftSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, over the requests that got a first token."""

    mean: float
    p50: float
    p95: float
    p99: float


class TbtSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds, over every token gap of every request."""

    p50: float
    p99: float
    max: float


class Attainment(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of the arrived requests (0 to 1) that met a target.

    One that failed, or never got a token, met none.

    tbt_mean, joint_mean: by the request's mean gap.  tbt_99, joint_99: at least 99 % of its gaps.
    """

    ttft: float
    tbt_mean: float
    tbt_99: float
    joint_mean: float
    joint_99: float


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on one workload.

    late_tokens_frac: share of all gaps above their request's target.
    deflected_frac: share of the decided requests.
    ttft_parts_p95_s: mean of each part over the requests between p93 and p97 of TTFT, so that the
    parts add up to about the p95 TTFT; empty when parts were not recorded.
    wall_s: wall-clock seconds the run took.
    """

    policy: str
    requests: RequestCounts
    ttft_s: TtftSummary
    tbt_s: TbtSummary
    late_tokens_frac: float
    attainment: Attainment
    deflected_frac: float
    kv_bytes_moved: int
    ttft_parts_p95_s: dict[str, float]
    wall_s: float
    reasons: dict[str, int]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole comparison. `config` echoes every option that shaped it."""

    runs: list[RunResult]
    seed: int
    spillway_version: str
    config: dict[str, Any]
    schema_version: int = RESULTS_SCHEMA_VERSION


def summarise(
    *, policy: str, records: Sequence[RequestRecord], gaps: GapHistogram, wall_s: float
) -> RunResult:
    """Return the figures of one run from its request records and all its token gaps.

    `records` holds every request that arrived, once, after the run is over; `gaps` every gap the
    records count. Definitions: the structs above. A figure over nothing is 0 (no request arrived,
    none got a token), never NaN, so that the result is always valid JSON. Raises
    InvariantViolation on a record with an outcome that is none of the four. O(n log n).
    """
    tally = Tally(len(records))
    for at, record in enumerate(records):
        tally.add(at, record)
    return run_result(tally, policy=policy, gaps=gaps, wall_s=wall_s)


def run_result(tally: Tally, *, policy: str, gaps: GapHistogram, wall_s: float) -> RunResult:
    """Return what `summarise` does, from records that were taken in one at a time."""
    outcomes = dict(tally.outcomes)
    counts = RequestCounts(
        arrived=sum(outcomes.values()),
        finished=outcomes.pop("finished", 0),
        failed=outcomes.pop("failed", 0),
        rejected=outcomes.pop("rejected", 0),
        cancelled=outcomes.pop("cancelled", 0),
    )
    if outcomes:
        raise InvariantViolation(f"a request cannot end as {sorted(outcomes)}")
    routes, arrived = tally.routes, counts.arrived
    return RunResult(
        policy=policy,
        requests=counts,
        ttft_s=_ttft_summary(tally.ttfts_s()),
        tbt_s=TbtSummary(p50=gaps.quantile(0.50), p99=gaps.quantile(0.99), max=gaps.max_s),
        late_tokens_frac=_share(tally.gaps_late, tally.gaps),
        attainment=Attainment(
            ttft=_share(tally.in_ttft, arrived),
            tbt_mean=_share(tally.in_tbt_mean, arrived),
            tbt_99=_share(tally.in_tbt_99, arrived),
            joint_mean=_share(tally.in_joint_mean, arrived),
            joint_99=_share(tally.in_joint_99, arrived),
        ),
        deflected_frac=_share(routes.get("deflected", 0), sum(routes.values())),
        kv_bytes_moved=tally.kv_bytes_moved,
        ttft_parts_p95_s=tally.parts_p95_s(),
        wall_s=wall_s,
        reasons=dict(sorted(tally.reasons.items())),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _ttft_summary(ttfts_s: Sequence[float]) -> TtftSummary:
    if not ttfts_s:
        return TtftSummary(mean=0.0, p50=0.0, p95=0.0, p99=0.0)
    return TtftSummary(
        mean=sum(ttfts_s) / len(ttfts_s),
        p50=percentile(ttfts_s, 0.50),
        p95=percentile(ttfts_s, 0.95),
        p99=percentile(ttfts_s, 0.99),
    )
