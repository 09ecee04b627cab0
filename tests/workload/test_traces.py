"""Recognising formats, cutting traces to size, and the real published traces when they are here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import ConfigError
from spillway.workload.row import Row
from spillway.workload.traces import (
    FORMATS,
    drop_longer_than,
    largest_burst,
    read_trace,
    speed_up,
    window,
)

TRACES = Path(__file__).parents[3] / "shared" / "traces"
AZURE = TRACES / "azure2023"
MOONCAKE = TRACES / "mooncake_fast25" / "conversation_trace.jsonl"
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"no traces in {TRACES}")

ROWS = [Row(0.0, 10, 1), Row(1.0, 20, 1), Row(4.0, 500, 1), Row(4.5, 600, 2), Row(9.0, 30, 1)]


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", ["", "\n\n", "a,b,c\n1,2,3\n", '{"x": 1}\n', "\x00\x01\xff", "plain text"]
)
def test_an_unknown_format_is_an_error_that_lists_the_known_ones(tmp_path: Path, content: str):
    path = tmp_path / "what.ever"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ConfigError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
    assert all(name in str(caught.value) for name in FORMATS)


def test_a_header_alone_has_no_usable_row(tmp_path: Path):
    path = tmp_path / "empty.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(ConfigError, match="it has no rows"):
        read_trace(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    for path in (tmp_path / "absent.csv", tmp_path):
        with pytest.raises(ConfigError, match=r"cannot be read"):
            read_trace(path)


def test_an_unknown_format_name_is_refused(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    with pytest.raises(ConfigError, match="'parquet' is unknown"):
        read_trace(path, "parquet")
    with pytest.raises(ConfigError, match="does not look like 'azure'"):
        read_trace(path, "azure")


def test_dropped_text_says_how_many_why_and_where(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n" + "0,0,1\n" * 4 + "x,1,1\n")
    trace = read_trace(path)
    assert trace.dropped_text() == (
        "5 rows dropped: 4 × prompt_tokens is below 1 (line 3, 4, 5, ...); "
        "1 × arrival_s is not a number (line 7)"
    )
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    assert read_trace(path).dropped_text() == ""


# --- cutting ---------------------------------------------------------------------------------


def test_a_window_is_half_open_and_starts_again_at_0():
    assert [row.arrival_s for row in window(ROWS, 1.0, 4.5)] == [0.0, 3.0]
    assert [row.arrival_s for row in window(ROWS, 4.5)] == [0.0, 4.5]
    assert window(ROWS) == ROWS
    assert window(ROWS, 100.0) == []


@pytest.mark.parametrize(("from_s", "to_s"), [(5.0, 5.0), (6.0, 5.0), (float("nan"), 5.0)])
def test_an_impossible_window_is_refused(from_s: float, to_s: float):
    with pytest.raises(ConfigError, match="window"):
        window(ROWS, from_s, to_s)


def test_speed_up_divides_the_times_and_touches_nothing_else():
    faster = speed_up(ROWS, 2.0)
    assert [row.arrival_s for row in faster] == [0.0, 0.5, 2.0, 2.25, 4.5]
    assert [row[1:] for row in faster] == [row[1:] for row in ROWS]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_speed_up_is_refused(factor: float):
    with pytest.raises(ConfigError, match="speed-up"):
        speed_up(ROWS, factor)


def test_rows_beyond_the_context_are_dropped_and_counted():
    kept, dropped = drop_longer_than(ROWS, 501)
    assert (len(kept), dropped) == (4, 1)
    assert Row(4.0, 500, 1) in kept  # exactly full still fits


def test_the_largest_burst_is_by_prompt_tokens():
    assert largest_burst(ROWS, 2.0) == (4.0, 6.0)
    assert largest_burst([], 2.0) == (0.0, 2.0)
    with pytest.raises(ConfigError, match="window"):
        largest_burst(ROWS, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 50)), min_size=1, max_size=30),
    st.integers(1, 10),
)
def test_no_other_window_holds_more(pairs: list[tuple[int, int]], window_s: int):
    rows = [Row(float(at), tokens, 1) for at, tokens in sorted(pairs)]
    from_s, to_s = largest_burst(rows, window_s)

    def held(start_s: float) -> int:
        return sum(row.prompt_tokens for row in window(rows, start_s, start_s + window_s))

    assert to_s == from_s + window_s
    assert held(from_s) == max(held(row.arrival_s) for row in rows)


# --- the published traces --------------------------------------------------------------------


@needs_traces
@pytest.mark.parametrize(
    ("file", "rows", "last_s", "prompt_tokens_max"),
    [
        ("AzureLLMInferenceTrace_conv.csv", 19_366, 3501.7, 14_050),
        ("AzureLLMInferenceTrace_code.csv", 8_819, 3435.9, 7_437),
    ],
)
def test_azure_2023_is_read_whole(file: str, rows: int, last_s: float, prompt_tokens_max: int):
    trace = read_trace(AZURE / file)
    assert (len(trace.rows), trace.dropped) == (rows, {})
    assert trace.rows[0].arrival_s == 0.0
    assert trace.rows[-1].arrival_s == pytest.approx(last_s, abs=0.1)
    assert max(row.prompt_tokens for row in trace.rows) == prompt_tokens_max


@needs_traces
def test_the_heaviest_burst_of_azure_code_is_where_its_notes_say():
    trace = read_trace(AZURE / "AzureLLMInferenceTrace_code.csv")
    from_s, _ = largest_burst(trace.rows, 95.0)
    assert 840 < from_s < 860
    assert len(window(trace.rows, 845.0, 940.0)) == 931


@needs_traces
@pytest.mark.slow
def test_mooncake_conversation_is_read_whole():
    trace = read_trace(MOONCAKE)
    assert (len(trace.rows), trace.dropped) == (12_031, {})
    assert len({row.prefix_blocks[0] for row in trace.rows}) == 1  # all share block 0
    assert drop_longer_than(trace.rows, 32_768)[1] == pytest.approx(0.07 * 12_031, rel=0.01)
    assert "3.000 s" in trace.notes[0]
    literal = read_trace(MOONCAKE, spread_ticks=False)
    assert len({row.arrival_s for row in literal.rows}) == 1_180
    assert len({row.arrival_s for row in trace.rows}) == 12_031
