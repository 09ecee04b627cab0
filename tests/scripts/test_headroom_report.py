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
    assert f"**{CELLS[0].name}**: p95 1.00 s, `least-ttft` 0.50 s, ratio 2.00" in page
    assert "(2.00-2.00). Not explained." in page
    assert f"**{CELLS[0].name}**: joint attainment 5.0 points behind `least-ttft`." in page


def test_calm_is_what_a_policy_that_never_deflects_makes_of_it() -> None:
    from headroom_cells import CALM_QUEUE_P99_S, Outcome
    from headroom_figures import OURS, STATIC, is_calm

    def runs(static_s: float) -> dict[str, list[Outcome]]:
        return {
            policy: [Outcome("any", policy, seed, result(policy, 1.0, 1.0), queue_s)]
            for policy, queue_s in ((STATIC, static_s), (OURS, 9.0))
            for seed in (1,)
        }

    assert is_calm(runs(CALM_QUEUE_P99_S))
    assert not is_calm(runs(CALM_QUEUE_P99_S + 1e-6))


def test_an_interval_needs_seeds_and_pairs_them() -> None:
    from headroom_cells import Outcome
    from headroom_figures import OURS, STATIC, interval

    def runs(p95_s: dict[str, tuple[float, ...]]) -> dict[str, list[Outcome]]:
        return {
            policy: [
                Outcome("any", policy, seed, result(policy, value_s, 1.0), 0.0)
                for seed, value_s in enumerate(each)
            ]
            for policy, each in p95_s.items()
        }

    assert interval(runs({OURS: (1.0,), STATIC: (2.0,)}), STATIC) == ""
    # Halved in every pair, however far the pairs are apart.
    assert interval(runs({OURS: (1.0, 7.0, 0.1), STATIC: (2.0, 14.0, 0.2)}), STATIC) == (
        " (0.50-0.50)"
    )
    assert interval(runs({OURS: (1.0, 1.0), STATIC: (2.0, 2.2)}), STATIC) == " (0.26-0.87)"


def test_a_trace_cell_and_a_drawn_one_name_their_rows_and_clusters() -> None:
    from headroom_cells import CELLS, SLOW_LINK_BYTES_PER_S, rows_of, scenario_of

    odd = next(cell for cell in CELLS if cell.odd == "link")
    links = [spec.link_bytes_per_s for spec in scenario_of(odd, "headroom").specs()]
    assert links.count(SLOW_LINK_BYTES_PER_S) == 1
    light = next(cell for cell in CELLS if cell.name == "burst, 2/s")
    assert rows_of(light, 1) == rows_of(light, 1) != rows_of(light, 2)
