"""What commands write: notes and progress on stderr, figures on stdout or into files."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from spillway import __version__
from spillway.core.errors import ConfigError
from spillway.wire.decisions import DecisionRecord
from spillway.wire.records import RequestRecord
from spillway.wire.results import Results, RunResult

if TYPE_CHECKING:
    from spillway.report.plots import Series

LINE_CHARS = 80

Advance = Callable[[float, str], None]


def note(text: str) -> None:
    """Say something to the person watching; never part of the figures."""
    print(text, file=sys.stderr, flush=True)


def announce(title: str, notes: Iterable[str]) -> None:
    """Say what is about to be run."""
    note(paragraph(title))
    for line in notes:
        note(paragraph(f"  {line}"))


@contextmanager
def progress(label: str, total: float) -> Iterator[Advance]:
    """Show a bar on a terminal while the block runs, and nothing elsewhere.

    Yields advance(done, detail): how much of `total` is done, and a few words beside the bar.
    """
    with progress_bars([label], total) as (advance,):
        yield advance


@contextmanager
def progress_bars(labels: Sequence[str], total: float) -> Iterator[list[Advance]]:
    """Show a bar per label, all of the same total; as `progress` does, which is the case of one."""
    if not sys.stderr.isatty():
        yield [lambda done, detail: None for _ in labels]
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def advance_of(task: TaskID) -> Advance:
            return lambda done, detail: bars.update(task, completed=done, detail=detail)

        yield [advance_of(bars.add_task(label, total=total, detail="")) for label in labels]


@contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal that something is going on while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def paragraph(text: str) -> str:
    """Return the text in lines that fit any terminal; further lines are indented."""
    return textwrap.fill(text, LINE_CHARS, subsequent_indent="  ")


def make_results(runs: list[RunResult], seed: int, config: dict[str, Any]) -> Results:
    """Return the runs with what a reader needs to repeat them."""
    return Results(runs=runs, seed=seed, spillway_version=__version__, config=config)


def write_results(path: Path, results: Results) -> None:
    """Write the JSON of docs/results.md. Raises ConfigError when the file cannot be written."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


def write_page(
    path: Path,
    results: Results,
    series: Sequence[Series],
    example: DecisionRecord | None,
    notes: Sequence[str],
    warnings: Sequence[str] = (),
) -> None:
    """Write the HTML report and its folder. Raises ConfigError when that cannot be."""
    from spillway.report.html import write_html

    make_folder(path)
    write_html(path, results, series, example, notes, warnings)


def write_overview(path: Path, results: Results, series: Sequence[Series]) -> None:
    """Write the figure of first tokens beside token gaps; the ending of `path` says the format."""
    from spillway.report.plots import Shown, overview, write_figure

    make_folder(path)
    write_figure(path, overview, Shown(series, results.runs))


def write_records(path: Path, records: Iterable[RequestRecord]) -> None:
    """Write one JSON line per request. Raises ConfigError when the file cannot be written."""
    encoder = msgspec.json.Encoder()
    write_bytes(path, b"".join(encoder.encode(record) + b"\n" for record in records))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and its folder. Raises ConfigError naming the file."""
    make_folder(path)
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def make_folder(path: Path) -> None:
    """Make the folder that `path` lies in. Raises ConfigError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{path.parent}: cannot be made: {error.strerror}") from None
