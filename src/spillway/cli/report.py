"""`spillway report`: a page and figures from results on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spillway.wire.cells import CellKey
    from spillway.wire.sweepfile import Sweep
    from spillway.wire.timeline import Timeline

PARQUET = b"PAR1"  # every Parquet file begins with it
GANTT_POLICIES_MAX = 3


def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="The table of spillway sweep, the --json of demo, simulate or load, or a file of "
            "request records (--records).",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder for index.html and figures/. Default: build/, by the file's name.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    gantt: Annotated[
        bool,
        typer.Option(
            help="Simulate the worst burst of a sweep again, to show what every node did.",
        ),
    ] = True,
) -> None:
    """Make a page of results: standings, figures, and where each policy loses.

    The page is one file that needs nothing else; its figures are also written
    as SVG and PNG.

    [bold]Examples[/bold]
      spillway report build/matrix.parquet
      spillway report build/load.jsonl --out build/load-report
    """
    from spillway.cli.output import note, working
    from spillway.core.errors import ConfigError

    try:
        with results.open("rb") as file:
            head = file.read(len(PARQUET))
    except OSError as error:
        raise ConfigError(f"{results}: cannot be read: {error.strerror}") from None
    folder = out or Path("build") / f"{results.stem}-report"
    with working("drawing"):
        page = _sweep(results, folder, gantt) if head == PARQUET else _runs(results, folder)
    note(f"page:    {page}")
    note(f"figures: {page.parent / 'figures'}")


def _sweep(path: Path, folder: Path, gantt: bool) -> Path:
    from spillway.report.sweephtml import write_sweep_page
    from spillway.wire.sweepfile import read_sweep

    sweep = read_sweep(path)
    return write_sweep_page(folder, sweep, _timelines(sweep) if gantt else ())


def _timelines(sweep: Sweep) -> Sequence[Timeline]:
    """Return the worst burst of the focus cell under a static and the deflecting policies.

    None when the cell is of a trace: its file is not at hand.
    """
    from dataclasses import replace

    import msgspec

    from spillway.report.sweepplots import SHOWN_ALWAYS, sweep_shown
    from spillway.sim.matrix import make_plan
    from spillway.sim.timeline import record_timeline, worst_burst_s
    from spillway.wire.matrix import Matrix

    focus = sweep_shown(sweep.cells).focus
    matrix = msgspec.convert(sweep.head.matrix, Matrix)
    drawn = {name: one for name, one in matrix.workloads.items() if one.synthetic}
    if focus.name.workload not in drawn:
        return ()
    policies = [name for name in SHOWN_ALWAYS if name in focus.runs] or list(focus.runs)
    plan = make_plan(msgspec.structs.replace(matrix, workloads=drawn), Path())
    keys: list[CellKey] = [focus.runs[name][0].key for name in policies[:GANTT_POLICIES_MAX]]
    task = plan.cells_task(keys, focus.runs[policies[0]][0].capacity_per_s)
    rows = task.rows()
    stretch_s = worst_burst_s(rows)
    return [
        record_timeline(replace(task.scenario, policy=key.policy), rows, key.seed, stretch_s)
        for key in keys
    ]


def _runs(path: Path, folder: Path) -> Path:
    from spillway.report.runspage import read_runs, write_runs_page

    return write_runs_page(folder, read_runs(path))
