"""The page of a single comparison from its files: a results JSON, or a file of request records.

A results JSON holds the figures of each run and no curves; records hold every request and of its
token gaps the mean and the longest. Each gives what it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from spillway import __version__
from spillway.core.errors import ConfigError
from spillway.report import plots
from spillway.report.html import page
from spillway.report.plots import Series, Shown, write_figure
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord
from spillway.wire.results import Results, summarise

GAPS_UNKNOWN = (
    "Request records hold no single token gaps: the quantiles of all gaps are not known and shown "
    "as 0. Attainment and late tokens are exact."
)


class Runs(NamedTuple):
    """What a file held. series: of the requests, empty when it held figures only."""

    results: Results
    series: tuple[Series, ...]
    notes: tuple[str, ...]


def read_runs(path: Path) -> Runs:
    """Return what a results JSON or a file of records holds. Raises ConfigError on neither."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return Runs(msgspec.json.decode(text, type=Results), (), ())
    except msgspec.DecodeError:
        pass
    try:
        records = [
            msgspec.json.decode(line, type=RequestRecord) for line in text.splitlines() if line
        ]
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path}: neither a table of spillway sweep, nor results (--json), nor request records "
            f"(--records): {error}"
        ) from None
    if not records:
        raise ConfigError(f"{path}: holds no request record")
    return _from_records(path.stem, records)


def write_runs_page(folder: Path, runs: Runs) -> Path:
    """Write the page and its figures; return the page's path. Raises ConfigError."""
    shown = Shown(runs.series, runs.results.runs)
    chosen = {"ttft-parts": plots.ttft_parts} if _parts_known(runs.results) else {}
    if runs.series:
        chosen |= {"ttft": plots.ttft_cdf, "over-time": plots.over_time}
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for name, plot in chosen.items():
            for ending in ("svg", "png"):
                write_figure(folder / "figures" / f"{name}.{ending}", plot, shown)
        path = folder / "index.html"
        path.write_text(page(runs.results, runs.series, notes=runs.notes), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the report: {error.strerror}") from None
    return path


def _parts_known(results: Results) -> bool:
    return any(run.ttft_parts_p95_s for run in results.runs)


def _from_records(name: str, records: Sequence[RequestRecord]) -> Runs:
    gaps = GapHistogram()
    run = summarise(policy=name, records=records, gaps=gaps, wall_s=0.0)
    results = Results(
        runs=[run], seed=0, spillway_version=__version__, config={"records": f"{name} (file)"}
    )
    return Runs(results, (Series(name, records, gaps),), (GAPS_UNKNOWN,))
