"""Broken files of every format: a plain error or usable rows, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import ConfigError
from spillway.workload.traces import read_trace

FILES = {
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
    b"2023-11-16 18:17:04.0319600,3180,8\r\n",
    "mooncake": b'{"timestamp": 3000, "input_length": 600, "output_length": 5, '
    b'"hash_ids": [0, 1]}\n',
    "burstgpt": b"Timestamp,Session ID,Request tokens,Response tokens\n5,1,3,4\n7,,3,4\n",
    "ragpulse": b'{"timestamp": "82", "input_length": 90, "output_length": 5, "hash_ids": '
    b'{"sys_prompt": [1], "passages_ids": [2]}, "session_id": "s"}\n',
    "qwen": b'{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.5, "input_length": 20, '
    b'"output_length": 3, "hash_ids": [1, 2]}\n',
    "own": b'{"arrival_s": 1, "prompt_tokens": 40, "output_tokens": 5, "prefix_blocks": [1, 2], '
    b'"block_tokens": 32, "session_id": "a", "think_s": 1}\n',
}
FOLDERS = {
    "servegen": {
        "chunk-0-trace.csv": b"0,1.0,1.0,Gamma,1.0,1.0\n600,0.5,1.5,Weibull,0.5,0.1\n",
        "chunk-0-dataset.json": b'{"0": {"input_tokens": "{45: 0.5, 46: 0.5}", '
        b'"output_tokens": "{5: 1.0}"}}',
    },
    "agentic": {
        "a.json": b'{"id": "a", "block_size": 64, "requests": [{"t": 0.0, "type": "s", "in": 200, '
        b'"out": 5, "hash_ids": [1, 2, 3], "think_time": 0.5}, {"t": 1.0, "type": "subagent", '
        b'"requests": [{"t": 0.0, "type": "n", "in": 70, "out": 1, "hash_ids": [1]}]}]}',
    },
}
TOKENS = (
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b'"x"',
    b"[]",
    b"{}",
    b"9" * 30,
    b"0",
    b",",
    b"\n",
    b"\xff",
)


def damaged(content: bytes, rng: Random) -> bytes:
    """Return the content with one to four pieces cut out, replaced or repeated."""
    broken = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(broken) + 1)
        kind = rng.randrange(3)
        if kind == 0:
            del broken[at : at + rng.randint(1, 8)]
        elif kind == 1:
            broken[at : at + rng.randint(0, 6)] = rng.choice(TOKENS)
        else:
            broken[at:at] = broken[at : at + rng.randint(1, 40)]
    return bytes(broken)


def check(path: Path) -> None:
    try:
        rows = read_trace(path).rows
    except ConfigError:
        return
    assert all(row.prompt_tokens >= 1 and row.output_tokens >= 1 for row in rows)
    assert all(row.arrival_s >= 0.0 for row in rows)
    assert all(before.arrival_s <= after.arrival_s for before, after in pairwise(rows))


@pytest.mark.slow
@given(st.sampled_from(sorted(FILES)), st.integers(0, 2**32))
def test_a_broken_file(name: str, seed: int):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        path.write_bytes(damaged(FILES[name], Random(seed)))
        check(path)


@pytest.mark.slow
@given(st.sampled_from(sorted(FOLDERS)), st.integers(0, 2**32))
def test_a_broken_folder(name: str, seed: int):
    rng = Random(seed)
    with TemporaryDirectory() as folder:
        for file, content in FOLDERS[name].items():
            (Path(folder) / file).write_bytes(
                damaged(content, rng) if rng.random() < 0.7 else content
            )
        check(Path(folder))


@pytest.mark.parametrize("name", FILES)
def test_the_whole_files_are_read(tmp_path: Path, name: str):
    path = tmp_path / "trace"
    path.write_bytes(FILES[name])
    assert read_trace(path).dropped == {}


@pytest.mark.parametrize("name", FOLDERS)
def test_the_whole_folders_are_read(tmp_path: Path, name: str):
    for file, content in FOLDERS[name].items():
        (tmp_path / file).write_bytes(content)
    assert read_trace(tmp_path).dropped == {}
