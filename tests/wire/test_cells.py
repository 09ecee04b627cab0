"""The flat row of one run."""

from __future__ import annotations

import pytest

from spillway.stats import GapHistogram
from spillway.wire.cells import (
    GAP_CURVE_FRACS,
    LENGTH_RANGES_TOKENS,
    TTFT_CURVE_FRACS,
    CellKey,
    CellSetting,
    cell_result,
)
from spillway.wire.records import RequestRecord, TtftParts
from spillway.wire.results import summarise

KEY = CellKey("burst", "usual", "2p2d", "exact", 0.9, 3, "headroom")
SETTING = CellSetting(rate_per_s=9.0, capacity_per_s=10.0, slo_ttft_s=1.0, slo_tbt_s=0.05)


def record(at: int, **changes: object) -> RequestRecord:
    values: dict[str, object] = {
        "request_id": f"r{at}",
        "arrival_s": float(at),
        "prompt_tokens": 100,
        "output_tokens": 3,
        "slo_ttft_s": 1.0,
        "slo_tbt_s": 0.05,
        "outcome": "finished",
        "route": "prefill",
        "ttft_s": 0.1 * at,
        "gaps": 2,
        "parts": TtftParts(queue=0.1 * at),
    }
    return RequestRecord(**{**values, **changes})  # type: ignore[arg-type]


def test_a_row_repeats_the_summary_and_its_key() -> None:
    gaps = GapHistogram()
    gaps.add(0.02, 20)
    records = [record(at) for at in range(1, 11)]
    run = summarise(policy="headroom", records=records, gaps=gaps, wall_s=9.9)
    row = cell_result(KEY, SETTING, run, records, gaps)
    assert row.key == KEY
    assert row.ttft_p95_s == run.ttft_s.p95
    assert row.joint_99_frac == run.attainment.joint_99 == 1.0
    assert row.goodput_per_s == pytest.approx(10 / 10.0), "ten good requests in ten seconds"
    assert row.parts_s["queue"] == run.ttft_parts_p95_s["queue"]
    assert len(row.ttft_curve_s) == len(TTFT_CURVE_FRACS)
    assert row.ttft_curve_s[50] == run.ttft_s.p50
    assert row.gap_curve_s == [gaps.quantile(share) for share in GAP_CURVE_FRACS]


def test_deflections_are_counted_by_prompt_length() -> None:
    records = [
        record(1, prompt_tokens=1, route="deflected"),
        record(2, prompt_tokens=127),
        record(3, prompt_tokens=128),
        record(4, prompt_tokens=1_000_000, route="deflected"),
        record(5, prompt_tokens=64, route="", outcome="rejected", ttft_s=None, parts=None),
    ]
    run = summarise(policy="headroom", records=records, gaps=GapHistogram(), wall_s=0.0)
    row = cell_result(KEY, SETTING, run, records, GapHistogram())
    assert row.length_requests == [2, 1, *[0] * (len(LENGTH_RANGES_TOKENS) - 3), 1]
    assert row.length_deflected == [1, 0, *[0] * (len(LENGTH_RANGES_TOKENS) - 3), 1]
    assert row.gap_curve_s == []


def test_a_run_without_a_request_is_a_row_of_noughts() -> None:
    run = summarise(policy="headroom", records=[], gaps=GapHistogram(), wall_s=0.0)
    row = cell_result(KEY, SETTING, run, [], GapHistogram())
    assert (row.goodput_per_s, row.ttft_curve_s, row.p95_queue_s) == (0.0, [], 0.0)
