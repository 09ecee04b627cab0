"""The Azure reader, on hand-made rows with every trap of the published files."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.traces import Trace, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def read(tmp_path: Path, *lines: str, end: str = "\r\n", header: str = HEADER) -> Trace:
    path = tmp_path / "trace.csv"
    path.write_bytes(end.join([header, *lines]).encode())  # no newline after the last row
    return read_trace(path)


def test_crlf_seven_digits_and_no_final_newline(tmp_path: Path):
    trace = read(
        tmp_path,
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:04.0319601,3180,8",
        "2023-11-16 18:18:03.9799600,110,27",
    )
    assert trace.format_name == "azure"
    assert trace.dropped == {}
    assert [row[:3] for row in trace.rows] == [
        (0.0, 4808, 10),
        (0.0520001, 3180, 8),  # the seventh digit counts
        (60.0, 110, 27),
    ]
    assert trace.rows[0].class_name == "default"
    assert trace.rows[0].prefix_blocks == ()


def test_fraction_absent_when_zero_and_utc_offset(tmp_path: Path):
    trace = read(
        tmp_path,
        "2024-05-12 00:00:00.001163+00:00,5,6",
        "2024-05-12 00:00:01+00:00,7,8",
        "2024-05-12T00:00:02.5Z,7,8",
        end="\n",
    )
    assert [row.arrival_s for row in trace.rows] == pytest.approx([0.0, 0.998837, 2.498837])


def test_rows_out_of_order_are_sorted_stably(tmp_path: Path):
    trace = read(
        tmp_path,
        "2023-11-16 00:00:10.0,1,1",
        "2023-11-16 00:00:05.0,2,1",
        "2023-11-16 00:00:10.0,3,1",
    )
    assert [(row.arrival_s, row.prompt_tokens) for row in trace.rows] == [(0, 2), (5, 1), (5, 3)]


def test_every_unusable_row_is_counted_under_its_reason(tmp_path: Path):
    good = "2023-11-16 18:17:03.9799600,10,10"
    trace = read(
        tmp_path,
        good,
        "2023-11-16 18:17:03.9799600,0,10",
        "2023-11-16 18:17:03.9799600,10,0",
        "2023-11-16 18:17:03.9799600,ten,10",
        "2023-11-16 18:17:03.9799600,10",
        "2023-11-16 18:17:03.9799600,10,10,10",
        "",
        "2023-13-16 18:17:03.9799600,10,10",
        "2023-11-16 18:17:3.9,10,10",
        "2023-11-16 18:17:03.97996001234,10,10",
        "2023-11-16 18:17:03.,10,10",
        "2023-11-16 18:17:-3.9,10,10",
        "not a time,10,10",
        ",,",
        good,
    )
    assert len(trace.rows) == 2
    assert trace.dropped == {
        "ContextTokens is below 1": 1,
        "GeneratedTokens is below 1": 1,
        "ContextTokens is not a whole number": 1,
        "not 3 columns": 2,
        "TIMESTAMP is not YYYY-MM-DD HH:MM:SS.fffffff": 7,
    }
    assert trace.dropped_places["not 3 columns"] == ["6", "7"]
    assert trace.dropped_places["ContextTokens is below 1"] == ["3"]


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path):
    trace = read(tmp_path, "2023-11-16 00:00:00.5,1,2", header="\ufeff" + HEADER)
    assert len(trace.rows) == 1


def test_a_file_without_a_usable_row_is_the_operators_error(tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"trace\.csv.*no usable row.*below 1 \(line 2\).*mooncake"
    ):
        read(tmp_path, "2023-11-16 00:00:00.5,0,2")
