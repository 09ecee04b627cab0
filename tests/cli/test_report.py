"""`spillway report`, from results on disk to a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_command import Command
from sweep_samples import write_tiny

pytest.importorskip("pyarrow")


@pytest.mark.slow
def test_a_sweep_becomes_a_page_with_a_gantt_view(spillway: Command, tmp_path: Path) -> None:
    table, folder = tmp_path / "t.parquet", tmp_path / "page"
    assert spillway("sweep", write_tiny(tmp_path), "--jobs", 1, "--out", table).code == 0
    done = spillway("report", table, "--out", folder)
    assert done.code == 0
    assert str(folder / "index.html") in done.err
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "What the nodes did around the worst burst" in text
    assert "another version" not in text, "the view is of the very run in the table"
    assert (folder / "figures" / "gantt.png").exists()


@pytest.mark.slow
def test_a_results_json_becomes_a_page(spillway: Command, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    short = ("--synthetic", "burst", "--duration-s", "5", "--policy", "headroom")
    assert spillway("simulate", *short, "--json", path).code == 0
    assert spillway("report", path, "--out", tmp_path / "page").code == 0
    assert "headroom: one run" in (tmp_path / "page" / "index.html").read_text(encoding="utf-8")


def test_what_cannot_be_read_takes_one_line(spillway: Command, tmp_path: Path) -> None:
    done = spillway("report", tmp_path / "absent.parquet")
    assert done.code == 2
    assert "absent.parquet: cannot be read" in done.err
