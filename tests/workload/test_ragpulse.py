"""The RAGPulse reader: components cut into blocks, its tables, and its two recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spillway.workload.row import Row
from spillway.workload.traces import Trace, read_trace

TABLES = {
    "1_sys_prompt.jsonl": ("sys_prompt_id", {1: 40, 2: 8}),
    "2_passages.jsonl": ("passage_id", {1: 100, 2: 20, 3: 5}),
    "3_history.jsonl": ("history_id", {1: 11}),
    "4_user_input.jsonl": ("user_input_id", {1: 9, 2: 30}),
    "5_web_search.jsonl": ("web_search_id", {1: 64}),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file, (id_key, lengths) in TABLES.items():
        lines = [json.dumps({id_key: at, "token_length": size}) for at, size in lengths.items()]
        (tmp_path / file).write_text("\n".join(lines) + "\n")
    return tmp_path


def line(
    at_s: Any = "0", prompt_tokens: int = 300, output_tokens: int = 9, **ids: list[int]
) -> str:
    kinds = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")
    return json.dumps(
        {
            "timestamp": at_s,
            "input_length": prompt_tokens,
            "output_length": output_tokens,
            "hash_ids": {kind: ids.get(kind, []) for kind in kinds},
            "session_id": "s",
        }
    )


def read(folder: Path, *lines: str) -> Trace:
    path = folder / "0_trace.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return read_trace(path)


def test_components_become_whole_blocks_of_16_tokens(folder: Path):
    trace = read(folder, line("82", 160, sys_prompt=[1], passages_ids=[1], user_input=[1]))
    assert trace.format_name == "ragpulse"
    (row,) = trace.rows
    assert row[:3] == (82.0, 160, 9)
    assert len(row.prefix_blocks) == (40 + 100 + 9) // 16
    assert len(set(row.prefix_blocks)) == 9
    assert (row.block_tokens, row.session_id) == (16, "s")
    assert trace.notes == ("prompt components cut into blocks of 16 tokens",)


@pytest.mark.parametrize(
    ("other", "shared_tokens"),
    [
        ({"sys_prompt": [1], "passages_ids": [1, 2], "user_input": [2]}, 160),
        ({"sys_prompt": [1], "passages_ids": [1, 3], "user_input": [1]}, 140),
        ({"sys_prompt": [1], "passages_ids": [2, 1], "user_input": [1]}, 40),
        ({"sys_prompt": [2], "passages_ids": [1, 2], "user_input": [1]}, 0),
    ],
)
def test_prompts_share_the_whole_blocks_of_what_they_have_in_common(
    folder: Path, other: dict[str, list[int]], shared_tokens: int
):
    one = line("0", sys_prompt=[1], passages_ids=[1, 2], user_input=[1])
    first, second = read(folder, one, line("1", **other)).rows
    alike = [a == b for a, b in zip(first.prefix_blocks, second.prefix_blocks, strict=False)]
    assert alike == sorted(alike, reverse=True)  # a prefix, and nothing after it
    assert sum(alike) == shared_tokens // 16


def test_the_kinds_stand_in_the_order_of_the_prompt(folder: Path):
    """History comes before web search and user input, whatever their tables are numbered."""
    base = {"sys_prompt": [1], "history": [1]}
    first, second = read(folder, line(web_search=[1], **base), line(user_input=[2], **base)).rows
    assert first.prefix_blocks[:3] == second.prefix_blocks[:3]
    assert first.prefix_blocks[3] != second.prefix_blocks[3]


def test_a_step_back_in_time_is_the_next_week(folder: Path):
    trace = read(folder, line("90000"), line("604000"), line("5"), line("90000"))
    assert [row.arrival_s for row in trace.rows] == [90_000.0, 604_000.0, 604_805.0, 694_800.0]
    assert "2 recordings" in trace.notes[1]


def test_what_cannot_be_used_is_counted(folder: Path):
    trace = read(
        folder,
        line(),
        line(passages_ids=[77]),
        line(prompt_tokens=90, passages_ids=[1]),
        line(output_tokens=0),
        line("soon"),
        line(-1.0),
    )
    assert len(trace.rows) == 1
    assert trace.dropped == {
        "a component has no length in 2_passages.jsonl": 1,
        "the components are longer than input_length": 1,
        "output_length is below 1": 1,
        "timestamp is not a number": 1,
        "Expected `str`, got `float` - at `$.timestamp`": 1,
    }


def test_without_its_tables_it_has_no_prefixes_and_says_so(folder: Path):
    (folder / "3_history.jsonl").unlink()
    trace = read(folder, line(sys_prompt=[1]))
    assert trace.rows == [Row(0.0, 300, 9, session_id="s")]
    assert trace.notes == (
        "no prefix blocks: 3_history.jsonl, the lengths of components, is not beside it",
    )
    (folder / "3_history.jsonl").write_text('{"id": 1}\n')
    assert "3_history.jsonl is no table" in read(folder, line(sys_prompt=[1])).notes[0]
