"""`spillway tune`, from its flags to its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_command import Command

SMALL = ("--synthetic", "burst", "--rate", "18", "--duration-s", "10", "--windows", "4")


@pytest.mark.slow
def test_it_searches_within_its_runs_and_says_what_to_do(spillway: Command, tmp_path: Path) -> None:
    done = spillway("tune", *SMALL, "--runs", "16", "--jobs", "1", "--json", tmp_path / "t.json")
    assert done.code == 0
    assert "held-out windows" in done.out or "Keep the defaults" in done.out
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["run_count"] <= 16
    assert (told["policy"], told["goal"], told["schema_version"]) == ("headroom", "joint", 1)
    assert told["config"]["synthetic"] == "burst"
    assert any(one["options"] == {} for one in told["tried"])
    assert ("policy:" in done.out) is told["worth_it"]


@pytest.mark.slow
def test_a_trace_of_ones_own_is_tuned_for_in_several_processes(
    spillway: Command, tmp_path: Path
) -> None:
    trace = tmp_path / "own.csv"
    lines = [f"{0.08 * at},{400 + 37 * at % 5000},20" for at in range(90)]
    trace.write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *lines]) + "\n")
    options = ("--windows", "4", "--runs", "12", "--goal", "ttft")
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for jobs, file in zip(("1", "2"), files, strict=True):
        done = spillway("tune", "--trace", trace, *options, "--jobs", jobs, "--json", file)
        assert done.code == 0
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--windows", "2"), "from 4 to 60"),
        (("--windows", "30"), "give fewer windows"),
        (("--goal", "tbt"), "choose one of joint, ttft"),
        (("--runs", "7"), "give more (--runs)"),
        (("--cluster", "2x2"), "not of the form 2p2d"),
    ],
)
def test_a_mistake_takes_one_line(spillway: Command, flags: tuple[str, str], said: str) -> None:
    done = spillway("tune", *SMALL, "--jobs", "1", *flags)
    assert (done.code, done.err.splitlines()[-1].startswith("spillway: error: ")) == (2, True)
    assert said in done.err


def test_its_help_says_what_an_answer_means(spillway: Command) -> None:
    done = spillway("tune", "--help")
    assert done.code == 0
    assert "keep the defaults" in done.out
    assert "Examples" in done.out
