"""Recognising formats, saying what was dropped, and the published traces when they are here."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.describe import shared_prefix_frac
from spillway.workload.operations import Dated, drop_longer_than, largest_burst, merge, window
from spillway.workload.seeds import stream
from spillway.workload.traces import BUNDLES, FORMATS, read_trace

TRACES = Path(__file__).parents[3] / "shared" / "traces"
AZURE = TRACES / "azure2023"
RAGPULSE = TRACES / "ragpulse" / "0_trace_weekA_lines1-3800.jsonl"
SERVEGEN = TRACES / "servegen" / "reason_deepseek-r1.tar.xz"
AGENTIC = TRACES / "agentic_kv_cache_tester" / "sessions_dev.tar.xz"
MOONCAKE = TRACES / "mooncake_fast25" / "conversation_trace.jsonl"
needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason=f"no traces in {TRACES}")


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
    assert all(name in str(caught.value) for name in (*FORMATS, *BUNDLES))


def test_a_header_alone_has_no_usable_row(tmp_path: Path):
    path = tmp_path / "empty.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(ConfigError, match="it has no rows"):
        read_trace(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"absent\.csv: cannot be read: No such file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match=r"of no known format; formats: .*servegen"):
        read_trace(tmp_path)


def test_a_broken_archive_is_named(tmp_path: Path):
    path = tmp_path / "t.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for at in range(20):
            (tmp_path / "m.json").write_text(stream(at, "noise").randbytes(20_000).hex())
            archive.add(tmp_path / "m.json", f"{at}.json")
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(ConfigError, match=r"t\.tar\.gz: a broken archive"):
        read_trace(path)


def test_an_unknown_format_name_is_refused(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,1,1\n")
    with pytest.raises(ConfigError, match="'moon' is unknown; did you mean 'mooncake'"):
        read_trace(path, "moon")
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
    assert shared_prefix_frac(trace.rows) == pytest.approx(0.37, abs=0.01)


@needs_traces
def test_azure_conversation_and_code_are_merged_on_one_clock():
    parts = [read_trace(AZURE / f"AzureLLMInferenceTrace_{kind}.csv") for kind in ("conv", "code")]
    rows, how = merge([Dated(part.rows, part.clock_ns) for part in parts])
    assert (len(rows), how) == (28_185, "on the wall clock")
    assert rows[-1].arrival_s == pytest.approx(3_513, abs=1)
    assert len(window(rows, 1700.0, 2000.0)) == 3_351


@needs_traces
@pytest.mark.slow
def test_ragpulse_shares_as_much_as_its_components_do():
    trace = read_trace(RAGPULSE)
    assert (len(trace.rows), trace.dropped) == (3_800, {})
    assert trace.rows[-1].arrival_s - trace.rows[0].arrival_s == 604_371
    assert shared_prefix_frac(trace.rows) == pytest.approx(0.31, abs=0.01)


@needs_traces
@pytest.mark.slow
def test_agentic_sessions_reuse_nearly_all_of_their_prompts():
    trace = read_trace(AGENTIC)
    assert len(trace.rows) + sum(trace.dropped.values()) == 3_123
    assert trace.dropped == {"out is 0: nothing was generated": 3}
    sessions = {row.session_id for row in trace.rows}
    assert len({one.partition("/")[0] for one in sessions}) == 109
    assert len([one for one in sessions if "/" in one]) == 9
    assert shared_prefix_frac(trace.rows) == pytest.approx(0.94, abs=0.01)


@needs_traces
@pytest.mark.slow
def test_servegen_draws_the_hour_that_was_asked_for():
    trace = read_trace(SERVEGEN, from_s=75_600.0, to_s=76_200.0)
    assert trace.dropped == {}
    assert {75_600.0 <= row.arrival_s < 76_200.0 for row in trace.rows} == {True}
    assert len(trace.rows) / 600 == pytest.approx(26.4, rel=0.4)
    assert "73 clients" in trace.notes[0]
