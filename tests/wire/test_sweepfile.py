"""The table and the journal of a sweep."""

from __future__ import annotations

from pathlib import Path

import pytest

from spillway.core.errors import ConfigError
from spillway.wire.sweepfile import (
    Journal,
    JournalLine,
    SweepHead,
    in_order,
    read_sweep,
    write_sweep,
)
from sweep_samples import cell, contest

pytest.importorskip("pyarrow")

HEAD = SweepHead(matrix={}, digest="one", spillway_version="0")


def test_a_sweep_comes_back_as_it_was_written(tmp_path: Path) -> None:
    sweep = contest()
    write_sweep(tmp_path / "new" / "s.parquet", sweep)
    assert read_sweep(tmp_path / "new" / "s.parquet") == sweep
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["s.parquet"]


def test_the_same_sweep_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_sweep(tmp_path / name, contest())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_is_no_sweep_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_text("no table")
    with pytest.raises(ConfigError, match=r"x\.parquet: not a readable Parquet file"):
        read_sweep(path)
    with pytest.raises(ConfigError, match="absent"):
        read_sweep(tmp_path / "absent")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(ConfigError, match="not the result of spillway sweep"):
        read_sweep(path)


def test_a_journal_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "s.part"
    journal = Journal(path, HEAD)
    journal.add([JournalLine(cell=cell(seed=1)), JournalLine(capacity=contest().capacities[0])])
    journal.close()
    again = Journal(path, HEAD)
    assert list(again.cells.values()) == [cell(seed=1)]
    assert again.capacities == [contest().capacities[0]]
    again.add([JournalLine(cell=cell(seed=2))])
    again.close()
    third = Journal(path, HEAD)
    assert {key.seed for key in third.cells} == {1, 2}
    third.discard()
    assert not path.exists()


def test_a_line_cut_short_by_a_crash_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.part"
    journal = Journal(path, HEAD)
    journal.add([JournalLine(cell=cell(seed=1)), JournalLine(cell=cell(seed=2))])
    journal.close()
    path.write_bytes(path.read_bytes()[:-10])
    again = Journal(path, HEAD)
    again.add([JournalLine(cell=cell(seed=3))])
    again.close()
    third = Journal(path, HEAD)
    third.close()
    assert {key.seed for key in third.cells} == {1, 3}


def test_a_journal_of_another_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.part"
    Journal(path, HEAD).close()
    other = SweepHead(matrix={}, digest="two", spillway_version="0")
    with pytest.raises(ConfigError, match="another matrix"):
        Journal(path, other)
    path.write_bytes(b"{}\n")
    with pytest.raises(ConfigError, match="--restart"):
        Journal(path, HEAD)


def test_cells_stand_in_the_order_of_the_matrix() -> None:
    cells = [cell(seed=seed) for seed in (1, 2, 3)]
    assert in_order(reversed(cells), [one.key for one in cells]) == tuple(cells)
