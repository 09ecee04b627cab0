"""`spillway sweep`: a whole matrix of runs, from a TOML file into one table."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from spillway.cli import options
from spillway.cli.values import writable

if TYPE_CHECKING:
    from spillway.sim.farm import Farm
    from spillway.sim.matrix import Plan
    from spillway.sim.matrixrun import Watch
    from spillway.wire.sweepfile import Sweep

WHERE = "Where"
RAY_HERE = "local"


MatrixFile = Annotated[
    Path, typer.Argument(metavar="MATRIX.toml", help="What to compare; see docs/sweeps.md.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE",
        callback=writable,
        help="Where the table goes, as Parquet. Default: build/, by the matrix's name.",
        rich_help_panel=options.OUTPUT,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        help="Processes on this machine. Default: one per processor.",
        rich_help_panel=WHERE,
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Compute on a Ray cluster instead: the one at ADDRESS, or without it one started "
        "on this machine. Give it behind the matrix. Same results, byte for byte.",
        rich_help_panel=WHERE,
    ),
]


class SweepCommand(TyperCommand):
    """A command whose `--ray` may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare `--ray` its default."""
        told = []
        for at, word in enumerate(args):
            bare = at + 1 == len(args) or args[at + 1].startswith("-")
            told.append(f"--ray={RAY_HERE}" if word == "--ray" and bare else word)
        return super().parse_args(ctx, told)


def sweep(
    matrix: MatrixFile,
    out: Out = None,
    jobs: Jobs = None,
    ray: Ray = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Discard what an earlier sweep left in --out.")
    ] = False,
    json: options.Json = None,
) -> None:
    """Compare policies over a whole matrix of workloads, loads, targets and clusters.

    Loads are relative: 1 is the rate up to which the best policy that never
    deflects lets 90 % of the requests meet both targets, measured first for
    each workload, target and cluster.
    A sweep that was broken off goes on where it was. [bold]spillway report[/bold] makes a
    page of the result.

    [bold]Examples[/bold]
      spillway sweep examples/matrix.toml
      spillway sweep examples/matrix.toml --jobs 8 --out build/wide.parquet
      spillway sweep examples/matrix.toml --ray 10.0.0.7:6379
    """
    from spillway.cli.output import note
    from spillway.sim.matrix import make_plan
    from spillway.sim.matrixrun import finished, journal_path
    from spillway.wire.matrix import read_matrix

    path = out or Path("build") / f"{matrix.stem}.parquet"
    plan = make_plan(read_matrix(matrix), matrix.parent)
    if restart:
        path.unlink(missing_ok=True)
        journal_path(path).unlink(missing_ok=True)
    done = finished(plan, path)
    if done is None:
        done = _run(plan, path, jobs, ray)
    else:
        note(f"nothing to do: {path} is complete (--restart computes it anew)")
    _show(done, json)
    note(f"table: {path}")
    note(f"page:  spillway report {path}")


def _run(plan: Plan, path: Path, jobs: int | None, ray: str | None) -> Sweep:
    from spillway.cli.output import announce
    from spillway.sim.matrixrun import run_matrix

    matrix = plan.matrix
    axes = (
        f"{len(plan.sources)} workloads x {len(matrix.loads)} loads x {len(matrix.targets)} "
        f"targets x {len(matrix.clusters)} clusters x {len(matrix.fidelity)} fidelities x "
        f"{len(matrix.seeds)} seeds x {len(matrix.policy_names)} policies"
    )
    title = f"{len(plan.keys):,} runs of about {matrix.requests:,} requests: {axes}"
    announce(title, plan.head.notes)
    with _farm(jobs, ray) as farm, _watching() as watch:
        return run_matrix(plan, path, farm, watch)


@contextmanager
def _farm(jobs: int | None, ray: str | None) -> Iterator[Farm]:
    from spillway.sim.farm import OneProcess, Processes, RayCluster

    if ray is not None:
        cluster = RayCluster(ray)
        try:
            yield cluster
        finally:
            cluster.close()
        return
    count = jobs or os.cpu_count() or 1
    yield OneProcess() if count == 1 else Processes(count)


@contextmanager
def _watching() -> Iterator[Watch]:
    """Show how far the sweep is; its two halves fill the bar one after the other."""
    from spillway.cli.output import progress

    with progress("sweeping", 1.0) as advance:
        yield lambda what, done, total: advance(done / total, f"{what}: {done:,} of {total:,}")


def _show(done: Sweep, json: Path | None) -> None:
    from spillway.cli.output import note, write_bytes
    from spillway.report.regret import print_standings, standings_json

    print_standings(done)
    if json is not None:
        write_bytes(json, standings_json(done))
        note(f"figures: {json}")
