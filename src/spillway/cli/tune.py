"""`spillway tune`: settings of headroom for one's own traffic, and whether they are worth it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.cli.rows import Workload
    from spillway.sim.scenario import Scenario
    from spillway.wire.tuned import Tuned

SEARCH = "Search"

Goal = Annotated[
    str,
    typer.Option(
        "--goal",
        metavar="joint|ttft",
        help="What to improve: joint, the requests that meet both targets; or ttft, the p95 time "
        "to first token, as long as that costs no more than half a point of joint.",
        rich_help_panel=SEARCH,
    ),
]
WindowCount = Annotated[
    int,
    typer.Option(
        "--windows",
        metavar="N",
        help="Cut the workload into so many windows; every other one is held out of the search.",
        rich_help_panel=SEARCH,
    ),
]
Runs = Annotated[
    int,
    typer.Option(
        "--runs",
        metavar="N",
        min=1,
        help="Simulate at most so many windows in all.",
        rich_help_panel=SEARCH,
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        metavar="N",
        min=1,
        help="Processes on this machine. Default: one per processor.",
        rich_help_panel=SEARCH,
    ),
]


def tune(
    trace: options.Trace = None,
    synthetic: options.Synthetic = None,
    rate: options.Rate = None,
    duration_s: options.Duration = 600.0,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    apply: options.Apply = None,
    seed: options.Seed = options.DEFAULT_SEED,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    profile: options.Profile = DEFAULT_PROFILE,
    link: options.LinkName = None,
    bias: options.Bias = 1.0,
    noise: options.Noise = 0.0,
    report_period_s: options.ReportPeriod = 0.1,
    decode_chunk_tokens: options.DecodeChunkTokens = None,
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    goal: Goal = "joint",
    windows: WindowCount = 12,
    runs: Runs = 300,
    jobs: Jobs = None,
    json: options.Json = None,
) -> None:
    """Find settings of headroom for your traffic, and say whether they are worth it.

    The workload is cut into windows. On every other one the search tries each
    knob alone, those that helped together, and steps from the best found; what
    the best one gains over the defaults is then measured on the windows that
    the search has not seen. If the gain lies within what windows differ by, the
    answer is to keep the defaults, and that is a good answer: they were chosen
    to hold everywhere. Tune at the load that hurts: where nearly every request
    meets its targets there is nothing to gain (--speed-up, --rate).

    [bold]Examples[/bold]
      spillway tune --trace azure.csv --cluster 2p2d --slo-ttft-s 1
      spillway tune --trace day.jsonl --from-s 36000 --to-s 43200 --speed-up 1.5
      spillway tune --synthetic burst --rate 20 --goal ttft --json tuned.json
    """
    from spillway.cli.rows import Ask, choose_rows, with_caveats
    from spillway.cli.simulate import make_scenario

    asked = Ask(trace, synthetic, rate, duration_s, from_s, to_s, speed_up, seed, None, apply)
    workload = with_caveats(choose_rows(asked), profile)
    of_nodes = (cluster, profile, link, bias, noise, report_period_s, decode_chunk_tokens)
    scenario = make_scenario(*of_nodes, (slo_ttft_s, slo_tbt_s))
    _tune(scenario, workload, Bounds(goal, windows, runs, jobs or os.cpu_count() or 1), seed, json)


class Bounds(NamedTuple):
    """What is searched for, and how far."""

    goal: str
    window_count: int
    runs_max: int
    jobs: int


def _tune(
    scenario: Scenario, workload: Workload, bounds: Bounds, seed: int, json: Path | None
) -> None:
    """Search, show what was found, and write it. Raises ConfigError before the first run."""
    from spillway.cli.output import announce, progress
    from spillway.report.tuned import print_tuned
    from spillway.sim.farm import OneProcess, Processes
    from spillway.sim.tuning import cut_windows
    from spillway.sim.tuning import tune as search

    scenario.specs()
    cut = cut_windows(workload.rows, bounds.window_count)
    announce(workload.title, workload.notes)
    runs_max = bounds.runs_max
    with progress("tuning", runs_max) as advance:
        found = search(
            scenario,
            cut,
            bounds.goal,
            OneProcess() if bounds.jobs == 1 else Processes(bounds.jobs),
            seed=seed,
            runs_max=runs_max,
            watch=lambda done, what: advance(done, f"{done} of at most {runs_max} runs: {what}"),
        )
    print_tuned(found)
    if json is not None:
        told = {"windows": bounds.window_count, "runs_max": runs_max}
        _write(json, found, scenario, workload, told)


def _write(
    path: Path, found: Tuned, scenario: Scenario, workload: Workload, bounds: dict[str, int]
) -> None:
    import msgspec

    from spillway import __version__
    from spillway.cli.output import note, write_bytes
    from spillway.cli.simulate import run_config

    config = {**run_config(scenario, workload), "command": "tune", **bounds}
    told = msgspec.structs.replace(found, config=config, spillway_version=__version__)
    write_bytes(path, msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
    note(f"figures: {path}")
