"""`spillway trace`: the statistics it prints, and a conversion that loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_command import Command
from spillway.workload.traces import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:{at // 60:02d}:{at % 60:02d}.0000000,{100 + at},{1 + at % 5}\n"
    for at in range(120)
)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE + "2023-11-16 18:02:00.0000000,0,5\n")
    return path


def test_describe_prints_and_writes_the_figures(
    spillway: Command, trace: Path, tmp_path: Path
) -> None:
    figures = tmp_path / "out" / "figures.json"
    ran = spillway("trace", "describe", str(trace), "--json", str(figures))
    assert ran.code == 0, ran.err
    assert "120 over 119.0 s" in ran.out
    assert "gap CV                0.00" in ran.out
    assert "1 rows dropped: 1 × ContextTokens is below 1 (line 122)" in " ".join(ran.err.split())
    told = json.loads(figures.read_text())
    assert told["figures"]["prompt_tokens"]["max"] == 219
    assert told["config"]["rows_dropped"] == {"ContextTokens is below 1": 1}
    assert told["config"]["format"] == "azure"


def test_describe_takes_a_family_and_operations(spillway: Command) -> None:
    ran = spillway("trace", "describe", "--synthetic", "lpld", "--apply", "thin=0.5")
    assert ran.code == 0, ran.err
    assert "thin=0.5: keep each session" in ran.err


@pytest.mark.slow
def test_describe_draws(spillway: Command, trace: Path, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    assert spillway("trace", "describe", str(trace), "--plot", str(plot)).code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_convert_keeps_the_requests(spillway: Command, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.jsonl"
    ran = spillway("trace", "convert", str(trace), str(out), "--from-s", "60")
    assert ran.code == 0, ran.err
    own = read_trace(out)
    assert own.format_name == "jsonl"
    assert own.rows == [
        row._replace(arrival_s=row.arrival_s - 60) for row in read_trace(trace).rows[60:]
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("missing.csv",), "missing.csv: cannot be read"),
        (("--apply", "thi=1", "--synthetic", "lpld"), "did you mean 'thin'?"),
        (("--synthetic", "lpd"), "did you mean 'lpld'?"),
    ],
)
def test_what_cannot_be_is_one_line(
    spillway: Command, arguments: tuple[str, ...], said: str
) -> None:
    ran = spillway("trace", "describe", *arguments)
    assert ran.code == 2
    assert said in ran.err
