"""`spillway sweep`, from its matrix file to its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli_command import Command
from sweep_samples import TINY, write_tiny

pytest.importorskip("pyarrow")


@pytest.mark.slow
def test_it_writes_the_table_and_ranks_the_policies(spillway: Command, tmp_path: Path) -> None:
    matrix, out = write_tiny(tmp_path), tmp_path / "out" / "t.parquet"
    done = spillway("sweep", matrix, "--jobs", 1, "--out", out, "--json", tmp_path / "t.json")
    assert done.code == 0
    assert "8 runs of about 40 requests: 1 workloads x 2 loads" in done.err
    assert "headroom" in done.out
    assert "least-loaded" in done.out
    assert len(json.loads((tmp_path / "t.json").read_text())["standings"]) == 2
    before = out.read_bytes()
    again = spillway("sweep", matrix, "--out", out)
    assert "nothing to do" in again.err
    assert again.out == done.out
    changed = write_tiny(tmp_path, TINY.replace("seeds = [1, 2]", "seeds = [1]"))
    refused = spillway("sweep", changed, "--out", out)
    assert refused.code == 2
    assert "another matrix" in refused.err
    assert out.read_bytes() == before
    anew = spillway("sweep", changed, "--out", out, "--jobs", 1, "--restart")
    assert anew.code == 0
    assert out.read_bytes() != before


def test_a_mistake_in_the_matrix_takes_one_line(spillway: Command, tmp_path: Path) -> None:
    matrix = write_tiny(tmp_path, TINY.replace("headroom", "hedroom"))
    done = spillway("sweep", matrix)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "tiny.toml" in done.err
    assert "did you mean 'headroom'" in done.err


def test_ray_may_stand_without_an_address(
    spillway: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    def run(plan: object, path: Path, jobs: int | None, ray: str | None) -> None:
        asked.append(ray)
        raise KeyboardInterrupt

    monkeypatch.setattr("spillway.cli.sweep._run", run)
    matrix, out = write_tiny(tmp_path), tmp_path / "t.parquet"
    for words in (
        (matrix, "--ray"),
        (matrix, "--ray", "--out", out),
        (matrix, "--ray", "head:6379"),
        ("--ray", "head:6379", matrix),
        (matrix,),
    ):
        spillway("sweep", *words, *(() if "--out" in words else ("--out", out)))
    assert asked == ["local", "local", "head:6379", "head:6379", None]
