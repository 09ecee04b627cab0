"""A sweep on disk: the finished table in Parquet, and the journal that it grows from.

While a sweep runs, every finished piece is a JSON line behind a head that says of which matrix it
is; a run that was broken off goes on from there. The finished table carries the same head in its
metadata and nothing that depends on when, where or in what order it was computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, get_type_hints

import msgspec

from spillway.core.errors import ConfigError
from spillway.wire.cells import CellKey, CellResult

SWEEP_SCHEMA_VERSION = 1
METADATA_KEY = b"spillway"


class SweepHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep is of.

    matrix: the matrix file as read.    digest: of it, of the traces, and of the code that runs it.
    notes: what a reader must know, such as a workload that was left out.
    """

    matrix: dict[str, Any]
    digest: str
    spillway_version: str
    notes: tuple[str, ...] = ()
    schema_version: int = SWEEP_SCHEMA_VERSION


class CapacityFound(msgspec.Struct, frozen=True, kw_only=True):
    """The highest rate at which the best static policy attains its share of the targets.

    attained_frac: what it attained there.   probes: rates that were tried.
    """

    workload: str
    target: str
    cluster: str
    fidelity: str
    policy: str
    capacity_per_s: float
    attained_frac: float
    probes: int


class JournalLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the two."""

    capacity: CapacityFound | None = None
    cell: CellResult | None = None


class Sweep(NamedTuple):
    """A finished sweep."""

    head: SweepHead
    capacities: tuple[CapacityFound, ...]
    cells: tuple[CellResult, ...]


class _Metadata(msgspec.Struct, frozen=True, kw_only=True):
    head: SweepHead
    capacities: tuple[CapacityFound, ...]


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write the table; the same sweep gives the same bytes. Raises ConfigError."""
    pyarrow, parquet = _pyarrow()
    kinds = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        list[float]: pyarrow.list_(pyarrow.float64()),
        list[int]: pyarrow.list_(pyarrow.int64()),
    }
    types = get_type_hints(CellResult)
    names = CellResult.__struct_fields__
    metadata = _Metadata(head=sweep.head, capacities=sweep.capacities)
    table = pyarrow.table(
        {name: [getattr(cell, name) for cell in sweep.cells] for name in names},
        schema=pyarrow.schema(
            [(name, kinds[types[name]]) for name in names],
            metadata={METADATA_KEY: msgspec.json.encode(metadata)},
        ),
    )
    unfinished = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, unfinished, compression="zstd")
        unfinished.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_sweep(path: Path) -> Sweep:
    """Return a finished sweep. Raises ConfigError when the file is none, or of another version."""
    pyarrow, parquet = _pyarrow()
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ConfigError(f"{path}: not a readable Parquet file: {error}") from None
    told = (table.schema.metadata or {}).get(METADATA_KEY)
    if told is None:
        raise ConfigError(f"{path}: not the result of spillway sweep")
    try:
        metadata = msgspec.json.decode(told, type=_Metadata)
        cells = msgspec.convert(table.to_pylist(), tuple[CellResult, ...])
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}: written by another version of spillway ({error}); run the sweep again"
        ) from None
    return Sweep(metadata.head, metadata.capacities, cells)


class Journal:
    """The finished pieces of a sweep that is under way, safe against being broken off.

    A line that was cut short by a crash is dropped: its piece runs again.
    """

    def __init__(self, path: Path, head: SweepHead) -> None:
        """Open or start the journal. Raises ConfigError when it is of another matrix."""
        self.path = path
        self.capacities: list[CapacityFound] = []
        self.cells: dict[CellKey, CellResult] = {}
        kept = self._read(head) if path.exists() else b""
        self._file: IO[bytes] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not kept:
                path.write_bytes(msgspec.json.encode(head) + b"\n")
            else:
                with path.open("r+b") as file:
                    file.truncate(len(kept))
            self._file = path.open("ab")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None

    def add(self, lines: Iterable[JournalLine]) -> None:
        """Keep finished pieces."""
        assert self._file is not None
        for line in lines:
            self._take(line)
            self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; what was added is kept."""
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Remove the journal: its table has been written."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _take(self, line: JournalLine) -> None:
        if line.capacity is not None:
            self.capacities.append(line.capacity)
        if line.cell is not None:
            self.cells[line.cell.key] = line.cell

    def _read(self, head: SweepHead) -> bytes:
        """Take in the whole lines of the file and return their bytes."""
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        first, *rest = whole.splitlines(keepends=True) or [b""]
        if not first:
            return b""
        try:
            found = msgspec.json.decode(first, type=SweepHead)
            lines = [msgspec.json.decode(line, type=JournalLine) for line in rest]
        except msgspec.MsgspecError:
            raise ConfigError(
                f"{self.path}: not a journal that this version reads; start anew with --restart"
            ) from None
        if found.digest != head.digest:
            raise ConfigError(other_matrix(self.path))
        for line in lines:
            self._take(line)
        return whole


def other_matrix(path: Path) -> str:
    """Return the sentence for results that do not belong to the matrix at hand."""
    return (
        f"{path}: holds results of another matrix, other traces or other code; "
        "give another --out, or discard them with --restart"
    )


def in_order(cells: Iterable[CellResult], order: Sequence[CellKey]) -> tuple[CellResult, ...]:
    """Return the cells in the order of the matrix, whatever order they were computed in."""
    rank = {key: at for at, key in enumerate(order)}
    return tuple(sorted(cells, key=lambda cell: rank[cell.key]))


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ConfigError(
            "sweeps are kept in Parquet, and pyarrow is not installed: "
            "pip install 'spillway[sweep]'"
        ) from None
    return pyarrow, parquet
