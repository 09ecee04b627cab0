"""The page about `headroom` says where it loses, whether anybody has an explanation or not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from spillway.wire.results import Attainment, RequestCounts, RunResult, TbtSummary, TtftSummary

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])


def result(policy: str, p95_s: float, joint_frac: float) -> RunResult:
    return RunResult(
        policy=policy,
        requests=RequestCounts(arrived=10, finished=10, failed=0, rejected=0, cancelled=0),
        ttft_s=TtftSummary(mean=p95_s / 2, p50=p95_s / 2, p95=p95_s, p99=2 * p95_s),
        tbt_s=TbtSummary(p50=0.01, p99=0.02, max=0.03),
        late_tokens_frac=0.0,
        attainment=Attainment(
            ttft=1.0, tbt_mean=1.0, tbt_99=1.0, joint_mean=1.0, joint_99=joint_frac
        ),
        deflected_frac=0.0,
        kv_bytes_moved=0,
        ttft_parts_p95_s={},
        wall_s=0.0,
        reasons={},
    )


def test_a_lost_cell_is_published_and_counted() -> None:
    import headroom_report as report
    from headroom_cells import CELLS, Outcome

    policies = (report.OURS, *report.RIVALS, *report.ABLATIONS)
    outcomes = [
        Outcome(
            cell.name,
            policy,
            seed,
            result(policy, 1.0 if policy == report.OURS else 2.0, 0.9),
            0.09 if cell.group == "light" else 0.11,
        )
        for cell in CELLS
        for policy in policies
        for seed in (1, 2)
    ]
    congested = sum(cell.group != "light" for cell in CELLS)
    page = report.page(report.by_cell(outcomes))
    assert f"{congested} of {congested} (100%)" in page
    assert "In no cell" in page
    lost = [
        one._replace(result=result(one.policy, 0.5, 0.95))
        if one.cell == CELLS[0].name and one.policy == "least-ttft"
        else one
        for one in outcomes
    ]
    page = report.page(report.by_cell(lost))
    assert f"{congested - 1} of {congested}" in page
    assert f"**{CELLS[0].name}**: p95 1.00 s, `least-ttft` 0.50 s. Not explained." in page
    assert f"**{CELLS[0].name}**: joint attainment 5.0 points behind `least-ttft`." in page
