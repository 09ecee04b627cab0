"""The page of a sweep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spillway.report.standings import standings
from spillway.report.sweephtml import (
    capacity_table,
    findings,
    share_table,
    sweep_page,
    write_sweep_page,
)
from spillway.report.sweepplots import sweep_shown
from spillway.wire.timeline import Timeline
from sweep_samples import cell, contest, sweep

SWEEP = contest()
SHOWN = sweep_shown(SWEEP.cells)


def timeline(ttft_p95_s: float) -> Timeline:
    return Timeline(
        policy="headroom",
        from_s=0.0,
        to_s=1.0,
        node_ids=("p0",),
        spans=(),
        waiting=(),
        ttft_p95_s=ttft_p95_s,
    )


def test_the_findings_name_winner_and_loser_alike() -> None:
    told = findings(standings(SHOWN.cells, SHOWN.axes.policies), SHOWN)
    assert told[0].startswith("Smallest regret in its worst cell: headroom, 3.0 points")
    assert any(line.startswith("headroom: both targets met by 92.5 %") for line in told)
    assert any(line.startswith("least-loaded: both targets met by 76.5 %") for line in told)


def test_shares_of_a_slow_first_token_add_up() -> None:
    grid = share_table(SHOWN)
    assert [row[0].text for row in grid.rows] == ["burst", "burst"]
    shares = [int(one.text) for one in grid.rows[0][3:]]
    assert 98 <= sum(shares) <= 102
    assert shares[0] == 60, "0.3 s of 0.5 s in the queue"


def test_capacities_are_shown_with_what_was_met_there() -> None:
    (row,) = capacity_table(SWEEP).rows
    assert [one.text for one in row][-2:] == ["10.00", "91.0"]


@pytest.mark.slow
def test_the_page_is_complete_and_loads_nothing() -> None:
    page = sweep_page(SWEEP, SHOWN, [timeline(0.5)])
    assert page.count("<figure>") == 7
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)
    assert "Where each policy loses" in page
    assert "Read these figures with care" not in page
    assert re.search(r"loads [\d., ]+; \d sets? of targets, \d clusters?, \d seeds? each", page)
    assert not re.search(r"\b1 (?:sets|clusters|seeds)\b", page)
    assert page == sweep_page(SWEEP, SHOWN, [timeline(0.5)])


@pytest.mark.slow
def test_what_casts_doubt_is_said_at_the_top(tmp_path: Path) -> None:
    cells = [cell("headroom", requests_finished=90, policy_failures=3)]
    page = write_sweep_page(tmp_path, sweep(cells, ("azure was left out",)), [timeline(9.9)])
    text = page.read_text(encoding="utf-8")
    for said in (
        "azure was left out",
        "10 of 100 requests did not finish",
        "failed on 3 decisions",
        "another version of the program made the table",
    ):
        assert said in text
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"gantt.svg", "gantt.png", "ttft.svg", "attainment-map.png"} < names
