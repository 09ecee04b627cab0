"""The summary of a run, by its definitions, on records small enough to count by hand."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import InvariantViolation
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord, TtftParts
from spillway.wire.results import Results, RunResult, summarise


def record(number: int = 0, **changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "request_id": f"r{number}",
        "arrival_s": float(number),
        "prompt_tokens": 100,
        "output_tokens": 11,
        "slo_ttft_s": 1.0,
        "slo_tbt_s": 0.05,
        "outcome": "finished",
        "route": "prefill",
        "reason": "static",
        "ttft_s": 0.5,
        "gaps": 10,
        "gap_mean_s": 0.02,
        "gap_max_s": 0.03,
    }
    return RequestRecord(**(fields | changes))


def summary(*records: RequestRecord, gaps: GapHistogram | None = None) -> RunResult:
    return summarise(policy="headroom", records=records, gaps=gaps or GapHistogram(), wall_s=1.5)


def test_nothing_at_all_gives_zeros_and_valid_json():
    empty = summary()
    assert empty.requests.arrived == empty.requests.finished == 0
    assert (empty.ttft_s.mean, empty.ttft_s.p99, empty.tbt_s.max) == (0.0, 0.0, 0.0)
    assert (empty.late_tokens_frac, empty.deflected_frac, empty.attainment.joint_99) == (0, 0, 0)
    assert empty.ttft_parts_p95_s == empty.reasons == {}
    assert b"null" not in msgspec.json.encode(empty)  # how msgspec writes a NaN


def test_each_outcome_is_counted_once():
    counts = summary(
        record(0),
        record(1, outcome="failed"),
        record(2, outcome="rejected", ttft_s=None),
        record(3, outcome="cancelled"),
        record(4),
    ).requests
    assert (counts.arrived, counts.finished, counts.failed) == (5, 2, 1)
    assert (counts.rejected, counts.cancelled) == (1, 1)


def test_an_outcome_that_is_none_is_our_own_error():
    with pytest.raises(InvariantViolation, match="lost"):
        summary(record(outcome="lost"))


def test_ttft_is_over_the_requests_that_got_a_token():
    ttft = summary(
        record(0, ttft_s=0.1), record(1, ttft_s=0.3), record(2, ttft_s=None, outcome="failed")
    ).ttft_s
    assert (ttft.mean, ttft.p50) == (pytest.approx(0.2), pytest.approx(0.2))
    assert ttft.p95 == pytest.approx(0.29)
    assert ttft.p99 == pytest.approx(0.298)


def test_gaps_come_from_the_histogram_and_lateness_from_the_records():
    gaps = GapHistogram()
    gaps.add(0.02, 90)
    gaps.add(0.2, 10)
    result = summary(record(0, gaps=60, gaps_late=10), record(1, gaps=40), gaps=gaps)
    assert result.tbt_s.p50 == pytest.approx(0.02, rel=0.005)
    assert result.tbt_s.p99 == pytest.approx(0.2, rel=0.005)
    assert result.tbt_s.max == 0.2
    assert result.late_tokens_frac == pytest.approx(0.1)


def test_attainment_by_mean_and_by_99_percent():
    attainment = summary(
        record(0),  # meets all
        record(1, ttft_s=1.0, gaps=100, gaps_late=1),  # exactly at both limits
        record(2, ttft_s=1.01),  # TTFT missed
        record(3, gaps=100, gaps_late=2),  # 98 % on time, mean fine
        record(4, gap_mean_s=0.051),  # mean missed, none late
        record(5, gaps=0, gap_mean_s=0.0),  # one token
        record(6, ttft_s=None, gaps=0, outcome="failed"),
        record(7, ttft_s=None, gaps=0, outcome="rejected"),
    ).attainment
    assert attainment.ttft == pytest.approx(5 / 8)
    assert attainment.tbt_mean == pytest.approx(5 / 8)
    assert attainment.tbt_99 == pytest.approx(5 / 8)
    assert attainment.joint_mean == pytest.approx(4 / 8)
    assert attainment.joint_99 == pytest.approx(4 / 8)


def test_each_request_is_measured_by_its_own_target():
    attainment = summary(record(0, slo_ttft_s=0.4), record(1, slo_tbt_s=0.01)).attainment
    assert (attainment.ttft, attainment.tbt_mean) == (0.5, 0.5)


def test_deflected_share_is_of_the_decided_requests():
    result = summary(
        record(0, route="deflected", reason="faster_on_decode"),
        record(1),
        record(2),
        record(3, route="deflected", reason="prefill_down"),
        record(4, route="", reason="", outcome="rejected", ttft_s=None),
    )
    assert result.deflected_frac == 0.5
    assert result.reasons == {"faster_on_decode": 1, "prefill_down": 1, "static": 2}
    assert list(result.reasons) == sorted(result.reasons)


def test_bytes_moved_are_added_up():
    assert summary(record(0, kv_bytes_moved=3), record(1, kv_bytes_moved=4)).kv_bytes_moved == 7


def test_parts_around_p95_add_up_to_about_the_p95_ttft():
    records = [
        record(k, ttft_s=k / 100, parts=TtftParts(queue=k / 200, execute=k / 200))
        for k in range(1, 101)
    ]
    result = summary(*records)
    assert set(result.ttft_parts_p95_s) == set(TtftParts.__struct_fields__)
    assert result.ttft_parts_p95_s["queue"] == pytest.approx(0.475, abs=0.01)
    assert sum(result.ttft_parts_p95_s.values()) == pytest.approx(result.ttft_s.p95, abs=0.01)


def test_parts_of_very_few_requests_are_those_next_to_p95():
    slow, fast = TtftParts(queue=0.9), TtftParts(queue=0.1)
    result = summary(record(0, ttft_s=0.9, parts=slow), record(1, ttft_s=0.1, parts=fast))
    assert result.ttft_parts_p95_s["queue"] == 0.9
    alone = summary(record(0, ttft_s=0.1, parts=fast), record(1))
    assert alone.ttft_parts_p95_s["queue"] == 0.1


def test_without_parts_there_are_none():
    assert summary(record(0)).ttft_parts_p95_s == {}


outcomes = st.sampled_from(["finished", "failed", "rejected", "cancelled"])


@given(
    st.lists(
        st.builds(
            record,
            outcome=outcomes,
            ttft_s=st.one_of(st.none(), st.floats(0, 100)),
            gaps=st.integers(0, 300),
            gaps_late=st.just(0),
            route=st.sampled_from(["", "prefill", "deflected"]),
            parts=st.one_of(st.none(), st.just(TtftParts(execute=1.0))),
        ),
        max_size=30,
    )
)
def test_shares_are_shares_and_joint_never_exceeds_its_parts(records: list[RequestRecord]):
    result = summary(*records)
    attained, counts = result.attainment, result.requests
    assert counts.arrived == (counts.finished + counts.failed + counts.rejected + counts.cancelled)
    assert 0 <= attained.joint_99 <= min(attained.ttft, attained.tbt_99) <= 1
    assert 0 <= attained.joint_mean <= min(attained.ttft, attained.tbt_mean) <= 1
    assert 0 <= result.deflected_frac <= 1


def test_results_survive_json():
    results = Results(runs=[summary(record(0))], seed=3, spillway_version="0", config={"a": 1})
    assert msgspec.json.decode(msgspec.json.encode(results), type=Results) == results
