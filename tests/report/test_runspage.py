"""The page of results and of records from disk."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from report_samples import make_series
from spillway.core.errors import ConfigError
from spillway.report.runspage import read_runs, write_runs_page
from spillway.wire.results import Results, summarise


def results() -> Results:
    series = make_series("headroom", 0.5)
    run = summarise(policy="headroom", records=series.records, gaps=series.gaps, wall_s=1.0)
    return Results(runs=[run], seed=1, spillway_version="0", config={})


def test_a_results_json_gives_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(msgspec.json.encode(results()))
    assert read_runs(path).results == results()
    assert read_runs(path).series == ()


def test_records_give_their_requests_and_say_what_is_not_known(tmp_path: Path) -> None:
    records = make_series("headroom", 0.5).records
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in records))
    runs = read_runs(path)
    assert runs.series[0].records == list(records)
    assert runs.results.runs[0].ttft_s == results().runs[0].ttft_s
    assert "no single token gaps" in runs.notes[0]


@pytest.mark.parametrize("text", ["{}", "nonsense\n", ""])
def test_anything_else_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        read_runs(path)


@pytest.mark.slow
def test_the_page_and_its_figures_are_written(tmp_path: Path) -> None:
    records = make_series("headroom", 0.5).records
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in records))
    page = write_runs_page(tmp_path / "out", read_runs(path))
    assert "no single token gaps" in page.read_text(encoding="utf-8")
    names = {one.name for one in (tmp_path / "out" / "figures").iterdir()}
    assert {"ttft.svg", "over-time.png", "ttft-parts.svg"} <= names
