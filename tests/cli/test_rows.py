"""Choosing rows: flags that contradict, windows, and the cut around a burst."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.cli.rows import Ask, BurstCut, choose_rows, onset
from spillway.core.errors import ConfigError
from spillway.workload.row import Row
from spillway.workload.synthetic import family


def ask(**changes: Any) -> Ask:
    fields: dict[str, Any] = {
        "traces": None,
        "synthetic": None,
        "rate_per_s": None,
        "duration_s": 20.0,
        "from_s": None,
        "to_s": None,
        "speed_up_factor": 1.0,
        "seed": 1,
    }
    return Ask(**(fields | changes))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """One request per second for 100 s, and from 50 s to 52 s another hundred."""
    rows = [(float(at), 100, 10) for at in range(100)]
    rows += [(50 + at / 50, 1000, 500) for at in range(100)]
    path = tmp_path / "trace.csv"
    lines = [f"{at_s},{prompt},{output}" for at_s, prompt, output in sorted(rows)]
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines) + "\n")
    return path


def test_without_a_word_the_burst_family_is_drawn() -> None:
    workload = choose_rows(ask())
    assert workload.rows == family("burst", 1, 20.0)
    assert workload.config["synthetic"] == "burst"
    assert f"{len(workload.rows)} requests" in workload.title


def test_a_trace_is_read_whole(trace: Path) -> None:
    workload = choose_rows(ask(traces=[trace]))
    assert len(workload.rows) == 200
    assert workload.config["trace"] == "trace.csv"
    assert workload.config["to_s"] is None


def test_a_window_and_a_speed_are_in_the_traces_own_seconds(trace: Path) -> None:
    workload = choose_rows(ask(traces=[trace], from_s=10.0, to_s=20.0, speed_up_factor=2.0))
    assert [row.arrival_s for row in workload.rows] == [at / 2 for at in range(10)]
    assert "2 times as fast" in workload.title


def test_a_drawn_workload_can_be_cut_too() -> None:
    workload = choose_rows(ask(from_s=5.0, to_s=10.0))
    whole = family("burst", 1, 20.0)
    assert len(workload.rows) == sum(5.0 <= row.arrival_s < 10.0 for row in whole)


def test_the_burst_is_cut_out_of_a_trace(trace: Path) -> None:
    cut = BurstCut(window_s=2.0, lead_s=3.0, prompt_tokens_max=10**9, output_tokens_max=64)
    workload = choose_rows(ask(traces=[trace], burst=cut))
    assert len(workload.rows) == 100 + 5
    assert workload.config["from_s"] == pytest.approx(47.0)
    assert max(row.output_tokens for row in workload.rows) == 64
    assert "around its largest burst: 47.0 s to 52.0 s of the trace" in workload.notes
    assert "100 longer outputs cut to 64 tokens" in workload.notes


def test_traces_are_merged_and_what_was_done_is_noted(trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("arrival_s,prompt_tokens,output_tokens\n0.5,7,7\n90.5,0,1\n")
    workload = choose_rows(ask(traces=[trace, other]))
    assert len(workload.rows) == 201
    assert workload.rows[1].prompt_tokens == 7
    assert workload.config["trace"] == "trace.csv + other.csv"
    assert workload.config["rows_dropped"] == {"prompt_tokens is below 1": 1}
    assert "2 traces merged, each from its own second 0" in workload.notes


def test_operations_are_applied_in_order_after_the_cut(trace: Path) -> None:
    done = ["context-max=1000", "overlay=2"]
    workload = choose_rows(ask(traces=[trace], to_s=50.0, operations=done))
    assert len(workload.rows) == 100
    assert workload.config["operations"] == done
    assert [note.partition(":")[0] for note in workload.notes] == done
    assert workload.title.startswith("trace.csv: 100 requests")
    with pytest.raises(ConfigError, match="leaves no request"):
        choose_rows(ask(traces=[trace], operations=["context-max=1"]))


def test_an_explicit_window_is_taken_as_it_is(trace: Path) -> None:
    cut = BurstCut(window_s=2.0, lead_s=3.0, prompt_tokens_max=1, output_tokens_max=1)
    workload = choose_rows(ask(traces=[trace], burst=cut, from_s=50.0, to_s=52.0))
    assert len(workload.rows) == 102
    assert max(row.output_tokens for row in workload.rows) == 500


def test_the_cut_may_go_on_after_the_burst(trace: Path) -> None:
    cut = BurstCut(2.0, 3.0, prompt_tokens_max=10**9, output_tokens_max=64, tail_s=4.0)
    workload = choose_rows(ask(traces=[trace], burst=cut))
    assert workload.config["to_s"] == pytest.approx(56.0)
    assert len(workload.rows) == 100 + 3 + 2 + 4


@given(
    prompts=st.lists(st.integers(1, 5000), min_size=1, max_size=60),
    prompt_tokens_max=st.integers(5000, 50_000),
)
def test_a_burst_is_cut_before_it_is_too_much_work(
    prompts: list[int], prompt_tokens_max: int
) -> None:
    rows = [Row(at / 10, prompt, 1) for at, prompt in enumerate(prompts)]
    burst = BurstCut(2.0, 0.5, prompt_tokens_max, 100)
    from_s, to_s = onset(rows, burst)
    kept = [row for row in rows if from_s <= row.arrival_s < to_s]
    assert kept
    assert sum(row.prompt_tokens for row in kept) <= prompt_tokens_max
    assert 0.0 <= from_s < to_s <= from_s + 2.5 + 1e-9


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"traces": [Path("x")], "synthetic": "burst"}, "exclude each other"),
        ({"traces": [Path("x")], "rate_per_s": 3.0}, "--rate is for --synthetic"),
        ({"traces": [Path("missing.csv")]}, "missing.csv"),
        ({"synthetic": "nope"}, "'nope' is unknown"),
        ({"duration_s": -1.0}, "must be above 0"),
        ({"from_s": 1e6}, "no request arrives"),
        ({"from_s": 5.0, "to_s": 5.0}, "is empty"),
        ({"speed_up_factor": 0.0}, "speed-up"),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        choose_rows(ask(**changes))
