"""Our own CSV and JSONL."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.plain import encode_row
from spillway.workload.row import Row
from spillway.workload.traces import Trace, read_trace


def read(tmp_path: Path, *lines: str, format_name: str | None = None) -> Trace:
    path = tmp_path / "trace"
    path.write_text("\n".join(lines))
    return read_trace(path, format_name)


def test_csv_columns_may_stand_in_any_order(tmp_path: Path):
    trace = read(
        tmp_path, "user,output_tokens, arrival_s,prompt_tokens", "a,5,2.5,100", "b,6,0.25,200"
    )
    assert trace.format_name == "csv"
    assert trace.rows == [Row(0.25, 200, 6), Row(2.5, 100, 5)]


def test_csv_class_name_is_optional_and_may_be_empty(tmp_path: Path):
    trace = read(
        tmp_path, "arrival_s,prompt_tokens,output_tokens,class_name", "0,1,1,chat", "1,1,1,"
    )
    assert [row.class_name for row in trace.rows] == ["chat", "default"]


def test_jsonl_with_class_and_prefix(tmp_path: Path):
    trace = read(
        tmp_path,
        '{"arrival_s": 1, "prompt_tokens": 100, "output_tokens": 5}',
        '{"arrival_s": 2.5, "prompt_tokens": 40, "output_tokens": 5, "class_name": "chat",'
        ' "prefix_blocks": [3, 4, 5], "block_tokens": 16, "anything": "else"}',
    )
    assert trace.format_name == "jsonl"
    assert trace.rows == [Row(1.0, 100, 5), Row(2.5, 40, 5, "chat", (3, 4, 5), 16)]


def test_unusable_csv_rows_are_counted(tmp_path: Path):
    trace = read(
        tmp_path,
        "arrival_s,prompt_tokens,output_tokens",
        "0,1,1",
        "nan,1,1",
        "-1,1,1",
        "soon,1,1",
        "1,1",
        '1,"1",1',
    )
    assert len(trace.rows) == 1
    assert trace.dropped == {
        "arrival_s is not a finite number >= 0": 2,
        "arrival_s is not a number": 1,
        "not as many columns as the header": 1,
        "prompt_tokens is not a whole number": 1,
    }


def test_unusable_jsonl_rows_are_counted(tmp_path: Path):
    trace = read(
        tmp_path,
        "{",
        '{"arrival_s": 1, "prompt_tokens": 100, "output_tokens": 5}',
        '{"arrival_s": -1, "prompt_tokens": 100, "output_tokens": 5}',
        '{"arrival_s": 1, "prompt_tokens": 1.5, "output_tokens": 5}',
        '{"arrival_s": 1, "prompt_tokens": 16, "output_tokens": 5, "prefix_blocks": [1]}',
        '{"arrival_s": 1, "prompt_tokens": 16, "output_tokens": 5, "prefix_blocks": [1, 2],'
        ' "block_tokens": 16}',
    )
    assert len(trace.rows) == 1
    assert trace.dropped == {
        "not valid JSON": 1,
        "arrival_s is not a finite number >= 0": 1,
        "Expected `int`, got `float` - at `$.prompt_tokens`": 1,
        "block_tokens is below 1": 1,
        "prefix_blocks reach beyond prompt_tokens": 1,
    }


def test_a_header_that_lacks_a_column_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not look like 'csv'"):
        read(tmp_path, "arrival_s,prompt_tokens", "0,1", format_name="csv")


def test_what_is_written_is_read_back_as_it_was(tmp_path: Path):
    rows = [
        Row(0.125, 100, 5),
        Row(1 / 3, 40, 7, "chat", (3, 4, 5), 16, "s1/2", 2.5),
        Row(2.0, 64, 1, prefix_blocks=(9,), block_tokens=64),
    ]
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"".join(map(encode_row, rows)))
    assert read_trace(path).rows == rows
    assert path.read_bytes().splitlines()[0] == (
        b'{"arrival_s":0.125,"prompt_tokens":100,"output_tokens":5}'
    )
