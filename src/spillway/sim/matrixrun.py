"""Carries a matrix out: capacities first, then the runs, every finished piece kept at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spillway.core.errors import ConfigError
from spillway.sim.farm import Farm
from spillway.sim.matrix import Plan, place_of
from spillway.wire.sweepfile import (
    Journal,
    JournalLine,
    Sweep,
    in_order,
    other_matrix,
    read_sweep,
    write_sweep,
)

Watch = Callable[[str, int, int], None]  # what is being done, how many are done, of how many


def journal_path(path: Path) -> Path:
    """Return where the finished pieces of an unfinished sweep are."""
    return path.with_name(path.name + ".part")


def finished(plan: Plan, path: Path) -> Sweep | None:
    """Return the sweep in `path`, or None when there is none yet.

    Raises ConfigError when it is of another matrix.
    """
    if not path.exists():
        return None
    sweep = read_sweep(path)
    if sweep.head.digest != plan.head.digest:
        raise ConfigError(other_matrix(path))
    return sweep


def run_matrix(plan: Plan, path: Path, farm: Farm, watch: Watch) -> Sweep:
    """Make every run that is not in the journal yet, and write the table to `path`.

    Raises ConfigError when a target is out of reach or a file cannot be written; what was finished
    before stays in the journal.
    """
    journal = Journal(journal_path(path), plan.head)
    try:
        _measure_capacities(plan, journal, farm, watch)
        _run_cells(plan, journal, farm, watch)
    finally:
        journal.close()
    rank = {place: at for at, place in enumerate(plan.places)}
    capacities = sorted(journal.capacities, key=lambda found: rank[place_of(found)])
    cells = in_order(journal.cells.values(), plan.keys)
    sweep = Sweep(plan.head, tuple(capacities), cells)
    write_sweep(path, sweep)
    journal.discard()
    return sweep


def _measure_capacities(plan: Plan, journal: Journal, farm: Farm, watch: Watch) -> None:
    done = {place_of(found) for found in journal.capacities}
    tasks = plan.capacity_tasks(done)
    for found in farm.run(tasks):
        journal.add([JournalLine(capacity=found)])
        watch("measuring capacities", len(journal.capacities), len(plan.places))


def _run_cells(plan: Plan, journal: Journal, farm: Farm, watch: Watch) -> None:
    done = set(journal.cells)
    watch("running", len(done), len(plan.keys))
    for results in farm.run(plan.cells_tasks(journal.capacities, done)):
        journal.add(JournalLine(cell=result) for result in results)
        watch("running", len(journal.cells), len(plan.keys))
