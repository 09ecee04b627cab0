"""The page of the reproduction says what was measured, and nothing that was not."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from spillway.report.standings import cells_of
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord, TtftParts
from spillway.wire.results import RunResult, summarise
from sweep_samples import cell, sweep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def doc() -> ModuleType:
    spec = spec_from_file_location("reproduction_doc", ROOT / "scripts" / "reproduction_doc.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def figures(queue_s: float, execute_s: float) -> RunResult:
    record = RequestRecord(
        request_id="r0",
        arrival_s=0.0,
        prompt_tokens=10,
        output_tokens=1,
        slo_ttft_s=1.0,
        slo_tbt_s=0.05,
        outcome="finished",
        route="prefill",
        ttft_s=queue_s + execute_s,
        parts=TtftParts(queue=queue_s, execute=execute_s),
    )
    return summarise(policy="x", records=[record], gaps=GapHistogram(), wall_s=0.0)


def hour(real_queue_s: float) -> list[Any]:
    deflecting = [
        SimpleNamespace(arrivals="as recorded", policy=policy, figures=figures(queue_s, 0.3))
        for policy, queue_s in (("kairos-paper", 2.0), ("headroom", 0.43))
    ]
    return deflecting + [
        SimpleNamespace(arrivals=arrivals, policy="least-loaded", figures=figures(queue_s, 0.3))
        for arrivals, queue_s in (
            ("as recorded", real_queue_s),
            ("dealt out anew", 8.0),
            ("Poisson", 0.1),
        )
    ]


def measured(paper_ttft_s: float = 0.2, **changes: Any) -> Any:
    rows = [
        cell(policy, load_frac=load_frac, ttft_p95_s=ttft_s, joint_99_frac=met)
        for load_frac in (0.6, 1.2)
        for policy, ttft_s, met in (
            ("least-loaded", 2.0, 0.5),
            ("kairos-paper", paper_ttft_s, 0.9),
            ("headroom", 0.5, 0.8),
        )
    ]
    added_s = {256: 0.01, 512: 0.02, 1024: 0.05, 2048: 0.25}
    cost = SimpleNamespace(policy="kairos-paper", decisions=10, p50_us=20.0, p99_us=300.0)
    values = {
        "sweep": sweep(rows, ("workload azure-code was left out",)),
        "hour": hour(7.0),
        "hour_profile": "some-profile",
        "hour_targets_s": (2.0, 0.05),
        "prefill_tokens_per_s": 15_000.0,
        "knee_seqs": 64,
        "knees": [SimpleNamespace(profile="one", decode_step_s=0.02, added_s=added_s)],
        "costs": [cost],
    }
    return SimpleNamespace(**{**values, **changes})


def test_the_figures_of_the_table_are_on_the_page(doc: ModuleType) -> None:
    page = doc.page(measured())
    assert "| burst | 2p2d | 1.2 | 2.00 | 0.20 | +90% | 0.50 | +75% |" in page
    assert "| burst | 2p2d | 1.2 | 50.0% | 90.0% | +80% | 80.0% | +60% |" in page
    assert "`headroom` is behind `kairos-paper` in 2 of 2 cells" in page
    assert "workload azure-code was left out." in page
    assert "As expected: under `least-loaded` the P95 TTFT is 7.3 s" in page
    assert "-90% under `headroom`." in page
    assert "{" not in page


def test_verdicts_follow_the_measurement(doc: ModuleType) -> None:
    good, poor = doc.page(measured(0.2)), doc.page(measured(1.9))
    claim = "the rule reduces P95 TTFT by up to 81%"
    assert f"| {claim} | by up to 90% in these cells | reproduced |" in good
    assert f"| {claim} | by up to 5% in these cells | in part |" in poor
    worse = doc.page(measured(2.5))
    assert f"| {claim} | by up to -25% in these cells | not reproduced |" in worse
    assert "longer than without deflection in 2 of 2 cells" in worse
    slow = SimpleNamespace(policy="kairos-paper", decisions=1, p50_us=20.0, p99_us=3000.0)
    assert "99 % within 3.00 ms | in part |" in doc.page(measured(costs=[slow]))


def test_an_hour_that_turns_out_otherwise_is_said_to(doc: ModuleType) -> None:
    assert "Not as expected: under" in doc.page(measured(hour=hour(0.2)))


def test_without_the_trace_the_hour_is_left_out_and_said(doc: ModuleType) -> None:
    assert "Not run: the Azure 2023 code trace was not at" in doc.page(measured(hour=()))


def test_the_share_is_of_all_parts(doc: ModuleType) -> None:
    (one,) = cells_of([cell("least-loaded")])
    assert doc.share_frac(one) == pytest.approx(0.15 / 0.5)
    assert doc.bend({256: 0.0, 512: 1.0, 1024: 1.0, 2048: 9.0}) == pytest.approx(2.0)


def test_the_written_page_has_every_claim() -> None:
    written = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    for part in (
        "make reproduce",
        "## In short",
        "## A real hour",
        "## The step-time knee",
        "## Cost of a decision",
        "## What could not be reproduced, and why",
    ):
        assert part in written
