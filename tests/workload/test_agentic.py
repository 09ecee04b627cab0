"""The reader of agent sessions: ids of their own, nested conversations, drawn starts."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from spillway.workload.agentic import STARTS_S
from spillway.workload.traces import read_trace


def asked(at_s: float, prompt_tokens: int, output_tokens: int = 9, **more: Any) -> dict[str, Any]:
    blocks = list(range(1, prompt_tokens // 64 + 1))
    fields = {"t": at_s, "type": "s", "in": prompt_tokens, "out": output_tokens}
    return fields | {"hash_ids": blocks} | more


def session(name: str, *requests: dict[str, Any]) -> str:
    return json.dumps(
        {"id": name, "models": ["m"], "block_size": 64, "hash_id_scope": "local"}
        | {"requests": requests}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inner = {"t": 30.0, "type": "subagent", "requests": [asked(0.0, 128), asked(5.0, 200)]}
    texts = {
        "a": session("a", asked(0.0, 200, think_time=0.0), inner, asked(60.0, 300, think_time=2.5)),
        "b": session("b", asked(1.0, 200), asked(9.0, 10), asked(12.0, 64, 0)),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "notes.md").write_text("not a session")
    return tmp_path


def test_a_session_keeps_its_times_blocks_and_pauses(folder: Path):
    trace = read_trace(folder, seed=3)
    assert trace.format_name == "agentic"
    rows = [row for row in trace.rows if row.session_id == "a"]
    assert [row.prompt_tokens for row in rows] == [200, 300]
    assert rows[1].arrival_s - rows[0].arrival_s == pytest.approx(60.0)
    assert [row.think_s for row in rows] == [0.0, 2.5]
    assert [len(row.prefix_blocks) for row in rows] == [3, 4]  # the partial tail has no id
    assert rows[1].prefix_blocks[:3] == rows[0].prefix_blocks
    assert {row.block_tokens for row in rows} == {64}


def test_a_nested_conversation_starts_when_it_was_started_and_shares_the_blocks(folder: Path):
    rows = read_trace(folder, seed=3).rows
    start_s = next(row.arrival_s for row in rows if row.session_id == "a")
    nested = [row for row in rows if row.session_id == "a/1"]
    assert [row.arrival_s - start_s for row in nested] == pytest.approx([30.0, 35.0])
    outer = next(row for row in rows if row.session_id == "a")
    assert nested[1].prefix_blocks == outer.prefix_blocks


def test_sessions_share_no_ids_and_start_where_the_seed_says(folder: Path):
    trace = read_trace(folder, seed=3)
    ids = [
        {one for row in trace.rows if row.session_id[0] == name for one in row.prefix_blocks}
        for name in "ab"
    ]
    assert not ids[0] & ids[1]
    assert 0.0 <= trace.rows[0].arrival_s < STARTS_S
    assert read_trace(folder, seed=3).rows == trace.rows != read_trace(folder, seed=4).rows
    assert trace.notes == ("2 sessions, starts drawn uniformly over 3600 s (seed 3)",)
    short = next(row for row in trace.rows if row.prompt_tokens == 10)
    assert (short.prefix_blocks, short.block_tokens) == ((), 0)


def test_an_archive_reads_as_the_folder_does(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("packed") / "sessions.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name in ("b", "a"):
            archive.add(folder / f"{name}.json", f"traces/{name}.json")
    assert read_trace(path, seed=3).rows == read_trace(folder, seed=3).rows


def test_what_cannot_be_used_is_counted_with_its_file(folder: Path):
    (folder / "c.json").write_text('{"block_size": 64, "requests": 3}')
    (folder / "d.json").write_text(
        session("d", asked(0.0, 100, hash_ids=[1, 2]), {"t": 1.0, "type": "n"})
    )
    trace = read_trace(folder)
    assert trace.dropped == {
        "out is 0: nothing was generated": 1,
        "no session: Expected `array`, got `int` - at `$.requests`": 1,
        "hash_ids reach beyond in": 1,
        "a request without in or out": 1,
    }
    assert trace.dropped_places["hash_ids reach beyond in"] == ["d.json"]
    assert "1 × hash_ids reach beyond in (d.json)" in trace.dropped_text()
