"""The figures of one run of a sweep, flat: one row of a table, whatever stores the table.

A sweep compares policies over many cells, so a row holds what a report draws and no more: the
summary of docs/results.md, two curves at fixed shares, and deflections by prompt length. It holds
no wall-clock time, so that the same matrix gives the same rows on any machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from spillway.stats import GapHistogram, percentile
from spillway.wire.records import RequestRecord
from spillway.wire.results import RunResult

# Shares at which the curves are kept: of the requests with a first token, and of all token gaps.
TTFT_CURVE_FRACS = (*(at / 100 for at in range(101)), 0.995, 0.999)
GAP_CURVE_FRACS = tuple(1 - 10 ** (-at / 10) for at in range(41))  # 0 to 99.99 %
# Lower ends of the ranges of prompt length that deflections are counted in.
LENGTH_RANGES_TOKENS = (1, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)

PARTS = ("queue", "execute", "transfer", "admission", "first_step")


class CellKey(msgspec.Struct, frozen=True, order=True):
    """Which run a row is of, by the names that the matrix gives things.

    load_frac: offered requests per second, of the capacity of the best static policy here.
    """

    workload: str
    target: str
    cluster: str
    fidelity: str
    load_frac: float
    seed: int
    policy: str


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Definitions as in docs/results.md; `p95_*_s` are its `ttft_parts_p95_s`.

    goodput_per_s: requests a second that met both targets (99 % of the gaps in time).
    ttft_curve_s, gap_curve_s: quantiles at TTFT_CURVE_FRACS and GAP_CURVE_FRACS; empty when there
        is nothing to take them of.
    length_requests, length_deflected: decided requests by LENGTH_RANGES_TOKENS.
    """

    workload: str
    target: str
    cluster: str
    fidelity: str
    load_frac: float
    seed: int
    policy: str
    rate_per_s: float
    capacity_per_s: float
    slo_ttft_s: float
    slo_tbt_s: float
    requests_arrived: int
    requests_finished: int
    requests_failed: int
    requests_rejected: int
    requests_cancelled: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    ttft_p99_s: float
    tbt_p50_s: float
    tbt_p99_s: float
    tbt_max_s: float
    late_tokens_frac: float
    ttft_met_frac: float
    tbt_mean_met_frac: float
    tbt_99_met_frac: float
    joint_mean_frac: float
    joint_99_frac: float
    goodput_per_s: float
    deflected_frac: float
    kv_moved_bytes: int
    p95_queue_s: float
    p95_execute_s: float
    p95_transfer_s: float
    p95_admission_s: float
    p95_first_step_s: float
    ttft_curve_s: list[float]
    gap_curve_s: list[float]
    length_requests: list[int]
    length_deflected: list[int]
    preemptions: int
    policy_failures: int

    @property
    def key(self) -> CellKey:
        """Return which run this is of."""
        return CellKey(
            self.workload,
            self.target,
            self.cluster,
            self.fidelity,
            self.load_frac,
            self.seed,
            self.policy,
        )

    @property
    def parts_s(self) -> dict[str, float]:
        """Return the parts of the p95 TTFT by name, in the order a request meets them."""
        return {name: float(getattr(self, f"p95_{name}_s")) for name in PARTS}


class CellSetting(msgspec.Struct, frozen=True, kw_only=True):
    """What a row says of its run beside the figures."""

    rate_per_s: float
    capacity_per_s: float
    slo_ttft_s: float
    slo_tbt_s: float
    preemptions: int = 0
    policy_failures: int = 0


def cell_result(
    key: CellKey,
    setting: CellSetting,
    run: RunResult,
    records: Sequence[RequestRecord],
    gaps: GapHistogram,
) -> CellResult:
    """Return the row of one run: `run` is the summary of `records` and `gaps`. O(n log n)."""
    span_s = max((record.arrival_s for record in records), default=0.0)
    met = run.attainment.joint_99 * run.requests.arrived
    parts_s = {name: run.ttft_parts_p95_s.get(name, 0.0) for name in PARTS}
    lengths = _by_length(records)
    return CellResult(
        **msgspec.structs.asdict(key),
        **msgspec.structs.asdict(setting),
        requests_arrived=run.requests.arrived,
        requests_finished=run.requests.finished,
        requests_failed=run.requests.failed,
        requests_rejected=run.requests.rejected,
        requests_cancelled=run.requests.cancelled,
        ttft_mean_s=run.ttft_s.mean,
        ttft_p50_s=run.ttft_s.p50,
        ttft_p95_s=run.ttft_s.p95,
        ttft_p99_s=run.ttft_s.p99,
        tbt_p50_s=run.tbt_s.p50,
        tbt_p99_s=run.tbt_s.p99,
        tbt_max_s=run.tbt_s.max,
        late_tokens_frac=run.late_tokens_frac,
        ttft_met_frac=run.attainment.ttft,
        tbt_mean_met_frac=run.attainment.tbt_mean,
        tbt_99_met_frac=run.attainment.tbt_99,
        joint_mean_frac=run.attainment.joint_mean,
        joint_99_frac=run.attainment.joint_99,
        goodput_per_s=met / span_s if span_s else 0.0,
        deflected_frac=run.deflected_frac,
        kv_moved_bytes=run.kv_bytes_moved,
        p95_queue_s=parts_s["queue"],
        p95_execute_s=parts_s["execute"],
        p95_transfer_s=parts_s["transfer"],
        p95_admission_s=parts_s["admission"],
        p95_first_step_s=parts_s["first_step"],
        ttft_curve_s=_ttft_curve_s(records),
        gap_curve_s=[gaps.quantile(share) for share in GAP_CURVE_FRACS] if gaps.count else [],
        length_requests=lengths[0],
        length_deflected=lengths[1],
    )


def _ttft_curve_s(records: Sequence[RequestRecord]) -> list[float]:
    ttfts_s = sorted(record.ttft_s for record in records if record.ttft_s is not None)
    return [percentile(ttfts_s, share) for share in TTFT_CURVE_FRACS] if ttfts_s else []


def _by_length(records: Sequence[RequestRecord]) -> tuple[list[int], list[int]]:
    """Return decided and deflected requests per range of prompt length."""
    decided, deflected = [0] * len(LENGTH_RANGES_TOKENS), [0] * len(LENGTH_RANGES_TOKENS)
    for record in records:
        if record.route:
            at = bisect_right(LENGTH_RANGES_TOKENS, max(record.prompt_tokens, 1)) - 1
            decided[at] += 1
            deflected[at] += record.route == "deflected"
    return decided, deflected
