"""The ServeGen generator: rates, lengths, windows, and clients that cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from statistics import fmean

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.traces import read_trace

LENGTHS = {"0": ({100: 0.75, 200: 0.25}, {10: 1.0}), "21600": ({5000: 1.0}, {7: 0.5, 8: 0.5})}


def write(folder: Path, client: int, windows: dict[int, str], lengths: object = LENGTHS) -> None:
    lines = [f"{start},{windows.get(start, '0,0,,0,0')}" for start in range(0, 43_200, 600)]
    (folder / f"chunk-{client}-trace.csv").write_text("\n".join(lines) + "\n")
    parts = lengths if isinstance(lengths, dict) else {}
    text = {
        start: {"input_tokens": str(prompt), "output_tokens": str(output), "reason_ratio": "{}"}
        for start, (prompt, output) in parts.items()
    }
    (folder / f"chunk-{client}-dataset.json").write_text(json.dumps(text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, 0, dict.fromkeys((600, 1200), "5.0,1.0,Gamma,1.0,0.2"))
    write(tmp_path, 1, {1200: "2.0,2.2,Weibull,0.5,0.1", 21_600: "3.0,0.5,Gamma,4.0,0.1"})
    return tmp_path


def test_rates_and_lengths_are_those_of_the_windows(folder: Path):
    trace = read_trace(folder, seed=2, from_s=600.0, to_s=30_000.0)
    assert (trace.format_name, trace.dropped) == ("servegen", {})
    counts = Counter(int(row.arrival_s // 600) for row in trace.rows)
    assert set(counts) == {1, 2, 36}
    assert counts[1] == pytest.approx(3_000, rel=0.06)
    assert counts[2] == pytest.approx(3_000 + 1_200, rel=0.12)
    assert counts[36] == pytest.approx(1_800, rel=0.06)
    early = [row for row in trace.rows if row.arrival_s < 21_600]
    assert Counter(row.output_tokens for row in early).keys() == {10}
    assert fmean(row.prompt_tokens == 100 for row in early) == pytest.approx(0.75, abs=0.03)
    late = [row for row in trace.rows if row.arrival_s >= 21_600]
    assert {(row.prompt_tokens, row.output_tokens) for row in late} == {(5000, 7), (5000, 8)}


def test_a_part_is_the_same_whatever_is_drawn_around_it(folder: Path):
    alone = read_trace(folder, seed=2, from_s=600.0, to_s=1_200.0).rows
    whole = read_trace(folder, seed=2, from_s=600.0, to_s=30_000.0).rows
    assert alone == whole[: len(alone)]
    assert alone != read_trace(folder, seed=3, from_s=600.0, to_s=1_200.0).rows


def test_without_a_part_the_busiest_hour_is_drawn(folder: Path):
    trace = read_trace(folder)
    assert trace.from_s == 600.0
    assert "the busiest hour, from 600 s to 4200 s" in trace.notes[0]
    assert trace.rows[-1].arrival_s < 4_200.0
    assert "prompt and output lengths independently" in trace.notes[1]


def test_clients_that_cannot_be_used_are_counted(folder: Path):
    write(folder, 2, {600: "1.0,1.0,Gamma,1.0,1.0"}, {"0": ({}, {})})
    write(folder, 3, {600: "1.0,1.0,Pareto,1.0,1.0", 1200: "x,1.0,Gamma,1.0,1.0"})
    write(folder, 4, {}, {"0": ({1: "much"}, {})})
    (folder / "chunk-5-trace.csv").write_text("0,1.0,1.0,Gamma,1.0,1.0\n")
    trace = read_trace(folder, from_s=600.0, to_s=1_800.0)
    silent = trace.dropped.pop("a client sends without known lengths")
    assert silent == pytest.approx(600, rel=0.15)
    assert trace.dropped == {
        "window: family is not Gamma or Weibull with a shape above 0": 1,
        "window: rate is not a number": 1,
        "a weight is not a number": 1,
        "a client without its dataset.json": 1,
    }
    assert trace.dropped_places["window: rate is not a number"] == ["chunk-3-trace.csv line 3"]


def test_a_part_without_traffic_is_an_error_that_says_so(folder: Path):
    with pytest.raises(ConfigError, match="it has no rows"):
        read_trace(folder, from_s=30_000.0, to_s=30_600.0)
