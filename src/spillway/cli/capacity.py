"""`spillway capacity`: how many nodes of each kind a workload needs, deflecting or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.cli.output import Advance
    from spillway.cli.rows import Workload
    from spillway.sim.scenario import Scenario
    from spillway.sim.sizing import Sized, Try

COMPARED = ("least-loaded", "headroom")
NODES_MAX = 64

WantedFrac = Annotated[
    float,
    typer.Option(
        "--attainment",
        metavar="FRAC",
        min=0.0,
        max=1.0,
        help="Share of the requests that must meet both targets.",
        rich_help_panel=options.TARGETS,
    ),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="Policy to size for; several to compare. "
        f"Default: {', '.join(COMPARED)}: without deflection and with it.",
        rich_help_panel=options.CLUSTER,
    ),
]
NodesMax = Annotated[
    int,
    typer.Option(
        "--nodes-max",
        metavar="N",
        min=1,
        max=NODES_MAX,
        help="Most nodes of each kind to try.",
        rich_help_panel=options.CLUSTER,
    ),
]


def capacity(
    trace: options.Trace = None,
    synthetic: options.Synthetic = None,
    rate: options.Rate = None,
    duration_s: options.Duration = 60.0,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    seed: options.Seed = options.DEFAULT_SEED,
    policy: Policies = None,
    profile: options.Profile = DEFAULT_PROFILE,
    nodes_max: NodesMax = 8,
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    attainment: WantedFrac = 0.95,
    json: options.Json = None,
) -> None:
    """Find the smallest clusters that meet the targets: prefill and decode nodes.

    For each number of decode nodes the fewest prefill nodes that let enough of
    the requests meet both targets (99 % of their gaps in time), and of these the
    cluster with the fewest nodes. Compares a policy that never deflects with one
    that does, on the same requests.

    [bold]Examples[/bold]
      spillway capacity --synthetic burst --rate 30
      spillway capacity --trace azure.csv --speed-up 4 --attainment 0.99
    """
    from spillway.cli.output import note
    from spillway.cli.rows import Ask, choose_rows
    from spillway.core.types import Slo
    from spillway.sim.scenario import Scenario

    workload = choose_rows(Ask(trace, synthetic, rate, duration_s, from_s, to_s, speed_up, seed))
    slos = {"default": Slo(slo_ttft_s, slo_tbt_s)}
    scenario = Scenario(profile=profile, slos=slos)
    found = _search(scenario, workload, policy or COMPARED, seed, attainment, nodes_max)
    config: dict[str, Any] = {
        "command": "capacity",
        **workload.config,
        "profile": profile,
        "slo_ttft_s": slo_ttft_s,
        "slo_tbt_s": slo_tbt_s,
        "attainment_frac": attainment,
        "nodes_max": nodes_max,
        "seed": seed,
    }
    _print(found, attainment, nodes_max)
    if json is not None:
        _write(json, found, config)
        note(f"figures: {json}")


def _search(
    scenario: Scenario,
    workload: Workload,
    policies: Sequence[str],
    seed: int,
    wanted_frac: float,
    nodes_max: int,
) -> dict[str, list[Sized]]:
    """Return each policy's smallest clusters. Raises ConfigError before the first run."""
    from dataclasses import replace

    from spillway.cli.output import announce, progress
    from spillway.core.policies import build_policy
    from spillway.sim.sizing import smallest_clusters, try_cluster

    for name in policies:
        build_policy(name)
    scenario.specs()
    announce(workload.title, workload.notes)
    found: dict[str, list[Sized]] = {}
    with progress("sizing", len(policies) * 2 * nodes_max) as advance:
        for at, name in enumerate(policies):
            attempt = try_cluster(replace(scenario, policy=name), workload.rows, seed)
            watched = _Watched(attempt, advance, name, at * 2 * nodes_max)
            found[name] = smallest_clusters(watched, wanted_frac, nodes_max)
    return found


class _Watched:
    """Tries clusters of one policy, and moves the progress bar."""

    def __init__(self, attempt: Try, advance: Advance, policy: str, done_runs: int) -> None:
        self._attempt = attempt
        self._advance = advance
        self._policy = policy
        self._done_runs = done_runs

    def __call__(self, prefill_count: int, decode_count: int) -> Sized:
        self._advance(self._done_runs, f"{self._policy} on {prefill_count}p{decode_count}d")
        self._done_runs += 1
        return self._attempt(prefill_count, decode_count)


def _print(found: dict[str, list[Sized]], wanted_frac: float, nodes_max: int) -> None:
    import sys

    from spillway.report.grid import print_grid
    from spillway.report.sizes import sizes_table, sizes_text

    if any(found.values()):
        print_grid(sizes_table(found), sys.stdout)
    for line in sizes_text(found, wanted_frac, nodes_max):
        typer.echo(line)


def _write(path: Path, found: dict[str, list[Sized]], config: dict[str, Any]) -> None:
    import msgspec

    from spillway import __version__
    from spillway.cli.output import write_bytes
    from spillway.report.sizes import SIZES_SCHEMA_VERSION
    from spillway.sim.sizing import fewest_nodes

    runs = []
    for name, steps in found.items():
        best = fewest_nodes(steps)
        told = [one._asdict() | {"node_count": one.node_count} for one in steps]
        fewest = None if best is None else told[steps.index(best)]
        runs.append({"policy": name, "clusters": told, "fewest": fewest})
    whole = {
        "schema_version": SIZES_SCHEMA_VERSION,
        "spillway_version": __version__,
        "config": config,
        "runs": runs,
    }
    write_bytes(path, msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
