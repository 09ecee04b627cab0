"""The Qwen-Bailian reader: 16-token blocks, and sessions as trees of follow-ups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spillway.workload.traces import Trace, read_trace


def line(chat_id: int, parent: int = -1, prompt_tokens: int = 40, **changes: Any) -> str:
    fields = {
        "chat_id": chat_id,
        "parent_chat_id": parent,
        "timestamp": chat_id * 0.5,
        "input_length": prompt_tokens,
        "output_length": 7,
        "type": "text",
        "turn": 1,
        "hash_ids": list(range(-(-prompt_tokens // 16))),
    }
    return json.dumps(fields | changes)


def read(tmp_path: Path, *lines: str) -> Trace:
    path = tmp_path / "qwen.jsonl"
    path.write_text("\n".join(lines))
    return read_trace(path)


def test_blocks_are_of_16_tokens(tmp_path: Path):
    trace = read(tmp_path, line(0), line(1, prompt_tokens=32))
    assert trace.format_name == "qwen-bailian"
    assert [row.prefix_blocks for row in trace.rows] == [(0, 1, 2), (0, 1)]
    assert {row.block_tokens for row in trace.rows} == {16}
    assert [row.arrival_s for row in trace.rows] == [0.0, 0.5]


def test_follow_ups_belong_to_the_session_of_their_root(tmp_path: Path):
    trace = read(tmp_path, line(3), line(4), line(5, 3), line(6, 5), line(7, 99))
    assert [row.session_id for row in trace.rows] == ["3", "4", "3", "3", "7"]


def test_a_tail_block_may_be_left_out_but_no_more(tmp_path: Path):
    trace = read(
        tmp_path, line(0, hash_ids=[1, 2]), line(1, hash_ids=[1]), line(2, output_length=0)
    )
    assert len(trace.rows) == 1
    assert trace.dropped == {
        "hash_ids do not cover input_length in blocks of 16 tokens": 1,
        "output_length is below 1": 1,
    }
