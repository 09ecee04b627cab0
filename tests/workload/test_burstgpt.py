"""The BurstGPT reader: both layouts, and requests that had failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.workload.row import Row
from spillway.workload.traces import Trace, read_trace

SIX = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
EIGHT = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
)


def read(tmp_path: Path, *lines: str) -> Trace:
    path = tmp_path / "BurstGPT.csv"
    path.write_text("\n".join(lines) + "\n")
    return read_trace(path)


def test_the_six_column_layout(tmp_path: Path):
    trace = read(
        tmp_path,
        SIX,
        "5,ChatGPT,472,18,490,Conversation log",
        "45.5,GPT-4,1087,230,1317,API log",
    )
    assert trace.format_name == "burstgpt"
    assert trace.rows == [Row(0.0, 472, 18), Row(40.5, 1087, 230)]


def test_the_eight_column_layout_is_read_by_name(tmp_path: Path):
    trace = read(
        tmp_path,
        EIGHT,
        "7,12,3.5,ChatGPT,100,20,120,Conversation log",
        "9,,0.5,GPT-4,30,4,34,API log",
    )
    assert trace.rows == [Row(0.0, 100, 20, session_id="12"), Row(2.0, 30, 4)]


def test_failures_and_broken_rows_are_counted(tmp_path: Path):
    trace = read(
        tmp_path,
        SIX,
        "5,ChatGPT,472,0,472,API log",
        "6,ChatGPT,0,10,10,API log",
        "x,ChatGPT,1,10,11,API log",
        "6,ChatGPT,1",
        "9,ChatGPT,3,10,13,API log",
    )
    assert trace.rows == [Row(0.0, 3, 10)]
    assert trace.dropped == {
        "Response tokens is 0: the request had failed": 1,
        "Request tokens is below 1": 1,
        "Timestamp is not a number": 1,
        "not as many columns as the header": 1,
    }


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_come_in_order_of_arrival(tmp_path: Path, order: tuple[int, int]):
    lines = ["5,m,1,1,2,l", "6,m,2,2,4,l"]
    trace = read(tmp_path, SIX, *(lines[at] for at in order))
    assert trace.rows == [Row(0.0, 1, 1), Row(1.0, 2, 2)]
