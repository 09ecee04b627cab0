"""Small results for tests of the report: three policies on the same forty requests."""

from __future__ import annotations

from dataclasses import dataclass

from spillway.report.plots import Series
from spillway.stats import GapHistogram
from spillway.wire.decisions import (
    CandidateRecord,
    DecidedRequest,
    DecisionBody,
    DecisionRecord,
    EstimateParts,
    PlanRecord,
)
from spillway.wire.records import RequestRecord, TtftParts
from spillway.wire.results import Results, RunResult, summarise

REQUESTS = 40
POLICIES = {"least-loaded": 1.0, "kairos-paper": 0.5, "headroom": 0.25}  # queue seconds, at most


@dataclass
class Sample:
    """What a comparison leaves behind."""

    series: list[Series]
    results: Results

    @property
    def runs(self) -> list[RunResult]:
        return self.results.runs


def make_series(policy: str, queue_s_max: float, *, failed: int = 0) -> Series:
    """Return forty requests with queues growing to `queue_s_max`, of which the last failed."""
    records, gaps = [], GapHistogram()
    for i in range(REQUESTS):
        deflected = policy != "least-loaded" and i % 4 == 0
        parts = TtftParts(queue=queue_s_max * (i + 1) / REQUESTS, execute=0.2, first_step=0.02)
        gone = i >= REQUESTS - failed
        records.append(
            RequestRecord(
                request_id=f"r{i}",
                arrival_s=i * 0.5,
                prompt_tokens=1000 + i,
                output_tokens=0 if gone else 3,
                slo_ttft_s=1.0,
                slo_tbt_s=0.06,
                outcome="failed" if gone else "finished",
                route="deflected" if deflected else "prefill",
                ttft_s=None if gone else parts.queue + parts.execute + parts.first_step,
                gaps=0 if gone else 2,
                gap_mean_s=0.0 if gone else 0.03,
                kv_bytes_moved=0 if deflected else 131_072 * (1000 + i),
                parts=None if gone else parts,
            )
        )
        if not gone:
            gaps.add(0.03, 2)
    return Series(policy, records, gaps)


def make_sample(*series: Series) -> Sample:
    runs = [
        summarise(policy=one.policy, records=one.records, gaps=one.gaps, wall_s=1.5)
        for one in series
    ]
    config = {"trace": "burst <1>.csv", "cluster": "2p2d", "policies": [r.policy for r in runs]}
    return Sample(list(series), Results(runs=runs, seed=7, spillway_version="0.0.1", config=config))


def three_policies() -> Sample:
    return make_sample(*(make_series(name, queue_s) for name, queue_s in POLICIES.items()))


def make_decision() -> DecisionRecord:
    """A deflection: both prefill paths queue, one decode node is vetoed, the other wins."""

    def part(queue_s: float, transfer_s: float) -> EstimateParts:
        return EstimateParts(
            queue_s=queue_s, execute_s=0.4, transfer_s=transfer_s, first_step_s=0.02
        )

    chosen = part(0.05, 0.0)
    return DecisionRecord(
        policy="headroom",
        decided_at_s=2.0,
        request=DecidedRequest(
            request_id="r4",
            arrival_s=2.0,
            prompt_tokens=6210,
            output_tokens_max=512,
            slo_ttft_s=1.0,
            slo_tbt_s=0.06,
            cached_tokens_by_node={"d1": 512},
        ),
        decision=DecisionBody(
            route="deflected",
            reason="faster_on_decode",
            decode_node_id="d1",
            estimate=chosen,
            plan=PlanRecord(chunks=((512, 11), (66, 1)), execute_s=0.4, step_s_max=0.054),
            candidates=(
                _candidate("p0", "d0", "slower", part(1.2, 0.03)),
                _candidate("p1", "d0", "slower", part(1.6, 0.03)),
                _candidate(None, "d0", "tbt_veto", None),
                _candidate(None, "d1", "chosen", chosen),
            ),
        ),
    )


def _candidate(
    prefill: str | None, decode: str, verdict: str, estimate: EstimateParts | None
) -> CandidateRecord:
    return CandidateRecord(
        prefill_node_id=prefill, decode_node_id=decode, verdict=verdict, estimate=estimate
    )
