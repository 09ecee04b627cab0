"""`spillway demo`: a burst against a real cluster of processes, once per policy, compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.cli.cluster import ClusterPlan
    from spillway.cli.output import Advance
    from spillway.cli.rows import BurstCut, Workload
    from spillway.loadgen.runner import LoadResult
    from spillway.report.plots import Series
    from spillway.wire.decisions import DecisionRecord
    from spillway.wire.records import RequestRecord
    from spillway.wire.results import RunResult


class Minute(NamedTuple):
    """What of a workload fits into a minute, start-up and drain included.

    work_s: of prefill, were the whole prefill pool on it: about what draining takes at worst.
    """

    lead_s: float
    burst_s: float
    tail_s: float
    work_s: float


IN_TURN = Minute(1.5, 7.5, 0.0, 9.0)  # three policies, one after the other
TOGETHER = Minute(10.0, 10.0, 15.0, 45.0)
OUTPUT_TOKENS_MAX = 256
DRAIN_S = 30.0  # of patience with what is still open after the last request
DRAWN_S = 60.0  # of the drawn workload, of which the largest burst is taken
MODEL = "fake-llama"
DECISIONS_READ = 1000  # what a router keeps
FOLDER = Path("build/demo")
DEFAULT_PAGE = Path("build/demo.html")

Together = Annotated[
    bool | None,
    typer.Option(
        "--together/--in-turn",
        help="Run the policies side by side, each on a cluster of its own, or one after the "
        "other. Default: together with --trace, so that more of it fits into a minute.",
        rich_help_panel=options.CLUSTER,
    ),
]
Html = Annotated[
    Path,
    typer.Option(metavar="FILE", help="Where to write the report.", rich_help_panel=options.OUTPUT),
]


def demo(
    trace: options.Trace = None,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    apply: options.Apply = None,
    seed: options.Seed = options.DEFAULT_SEED,
    policy: options.Policies = None,
    together: Together = None,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    profile: options.Profile = DEFAULT_PROFILE,
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    json: options.Json = None,
    html: Html = DEFAULT_PAGE,
    figure: options.Figure = None,
) -> None:
    """See deflection at work: a burst against a cluster on this machine.

    Starts 2 prefill and 2 decode engines (simulated GPUs behind real HTTP ports)
    and the router, sends them a burst of heavy-tailed prompts, once per policy,
    and compares: a table, one deflection explained, a report with plots. Takes
    less than a minute.

    With --trace it replays a real trace: by default the half minute around its
    largest burst, or exactly what --from-s and --to-s say.

    [bold]Examples[/bold]
      spillway demo
      spillway demo --policy threshold --policy headroom --seed 7
      spillway demo --trace AzureLLMInferenceTrace_code.csv
      spillway demo --trace ... --from-s 845 --to-s 940 --speed-up 1.6
    """
    import asyncio

    from spillway.cli.rows import Ask, choose_rows, with_caveats
    from spillway.core.policies import build_policy
    from spillway.sim.scenario import parse_cluster

    names = policy or options.COMPARED_POLICIES
    for name in names:
        build_policy(name)
    prefill_count, decode_count = parse_cluster(cluster)
    if together is None:
        together = bool(trace)
    cut = burst_cut(profile, prefill_count, TOGETHER if together else IN_TURN)
    drawn_s = DRAWN_S * speed_up
    part = (drawn_s, from_s, to_s, speed_up, seed)
    workload = with_caveats(choose_rows(Ask(trace, None, None, *part, cut, apply)), profile)
    targets_s = (slo_ttft_s, slo_tbt_s)
    stage = Stage(workload, prefill_count, decode_count, profile, *targets_s, seed)
    acts = asyncio.run(_play(stage, names, together=together))
    show(stage, acts, json, html, figure)


def burst_cut(profile: str, prefill_count: int, minute: Minute) -> BurstCut:
    """Return the cut around the largest burst that `minute` has time for."""
    from spillway.cli.rows import BurstCut
    from spillway.core.latency import prefill_s, token_pairs
    from spillway.wire.profile import load_profile

    step_tokens = 2048
    step_s = prefill_s(load_profile(profile), step_tokens, token_pairs(step_tokens, 0), step_tokens)
    prompt_tokens_max = int(prefill_count * step_tokens / step_s * minute.work_s)
    lead_s, burst_s, tail_s, _ = minute
    return BurstCut(burst_s, lead_s, prompt_tokens_max, OUTPUT_TOKENS_MAX, tail_s)


class Stage(NamedTuple):
    """What is the same for every policy."""

    workload: Workload
    prefill_count: int
    decode_count: int
    profile: str
    slo_ttft_s: float
    slo_tbt_s: float
    seed: int

    @property
    def nodes(self) -> int:
        """Return how many engines there are."""
        return self.prefill_count + self.decode_count

    def plan(self, policy: str) -> ClusterPlan:
        from spillway.cli.cluster import ClusterPlan

        return ClusterPlan(
            folder=FOLDER / policy,
            prefill_count=self.prefill_count,
            decode_count=self.decode_count,
            policy=policy,
            profile=self.profile,
            slo_ttft_s=self.slo_ttft_s,
            slo_tbt_s=self.slo_tbt_s,
            seed=self.seed,
        )

    def config(self) -> dict[str, Any]:
        """Return everything that shaped the figures, for the results."""
        return {
            "command": "demo",
            **self.workload.config,
            "cluster": f"{self.prefill_count}p{self.decode_count}d",
            "profile": self.profile,
            "slo_ttft_s": self.slo_ttft_s,
            "slo_tbt_s": self.slo_tbt_s,
        }


class Act(NamedTuple):
    """What came of one policy. example: its most telling deflection, if there was one."""

    run: RunResult
    series: Series
    complaints: list[str]
    example: DecisionRecord | None


async def _play(stage: Stage, policies: Sequence[str], *, together: bool) -> list[Act]:
    """Run the policies, each on a cluster started afresh."""
    from spillway.cli.output import announce, note

    announce(stage.workload.title, stage.workload.notes)
    order = "side by side" if together else "one after the other"
    note(
        f"for each policy, {order}: {stage.nodes} simulated engines ({stage.profile})"
        " and a router\n"
    )
    if together:
        return await _side_by_side(stage, policies)
    return [act for policy in policies for act in await _side_by_side(stage, [policy])]


async def _side_by_side(stage: Stage, policies: Sequence[str]) -> list[Act]:
    """Start a cluster per policy, send all of them the same load at once, and end them."""
    from asyncio import gather
    from contextlib import AsyncExitStack

    from spillway.cli.cluster import LocalCluster
    from spillway.cli.join import join_parts
    from spillway.cli.output import progress_bars, working

    async with AsyncExitStack() as stack:
        clusters = []
        for policy in policies:
            with working(f"{policy}: starting {stage.nodes} engines and a router"):
                plan = stage.plan(policy)
                clusters.append(await stack.enter_async_context(LocalCluster(plan)))
        urls = [cluster.url for cluster in clusters]
        with progress_bars(policies, len(stage.workload.rows)) as advances:
            results = await gather(*map(_drive, repeat(stage), policies, urls, advances))
        examples = [await find_example(url) for url in urls]
    return [
        make_act(policy, result, join_parts(result.records, cluster.records()), example)
        for policy, cluster, result, example in zip(
            policies, clusters, results, examples, strict=True
        )
    ]


def make_act(
    policy: str,
    result: LoadResult,
    records: list[RequestRecord],
    example: DecisionRecord | None,
) -> Act:
    """Return what came of a policy, and say so in a line. records: those of the result, or more."""
    from spillway.cli.load import complaints
    from spillway.cli.output import note
    from spillway.report.plots import Series
    from spillway.wire.results import summarise

    run = summarise(policy=policy, records=records, gaps=result.gaps, wall_s=result.wall_s)
    note(
        f"{policy:<14}p95 TTFT {run.ttft_s.p95:5.2f} s, {run.deflected_frac:4.0%} deflected"
        f"   ({result.wall_s:.0f} s)"
    )
    doubts = [f"{policy}: {line}" for line in complaints(result)]
    return Act(run, Series(policy, records, result.gaps), doubts, example)


async def _drive(stage: Stage, policy: str, url: str, advance: Advance) -> LoadResult:
    from spillway.cli.load import send_telling
    from spillway.core.types import Slo
    from spillway.loadgen.runner import LoadOptions

    load_options = LoadOptions(
        base_url=url,
        model=MODEL,
        slo=Slo(stage.slo_ttft_s, stage.slo_tbt_s),
        drain_s=DRAIN_S,
        check_text=True,
        run_id=policy,
    )
    return await send_telling(stage.workload.rows, load_options, advance)


async def find_example(url: str) -> DecisionRecord | None:
    """Return a router's most telling deflection, if there was one."""
    import asyncio

    from spillway.cli.example import best_example
    from spillway.cli.explain import ask_router

    decided = await asyncio.to_thread(ask_router, url, None, DECISIONS_READ)
    return best_example(decided)


def show(
    stage: Stage, acts: Sequence[Act], json: Path | None, html: Path, figure: Path | None
) -> None:
    """Print the table and one explanation, and write the report."""
    from spillway.cli.output import (
        make_results,
        paragraph,
        write_overview,
        write_page,
        write_results,
    )
    from spillway.report.explain import print_explanation
    from spillway.report.html import findings
    from spillway.report.tables import print_comparison

    results = make_results([act.run for act in acts], stage.seed, stage.config())
    print()
    print_comparison(results.runs)
    for finding in findings(results.runs):
        print(f"\n{paragraph(finding)}")
    shown = next((act for act in reversed(acts) if act.example is not None), None)
    example = shown.example if shown is not None else None
    if shown is not None and example is not None:
        print("\nOne deflection, explained\n")
        print_explanation(example, _happened(shown, example))
    complaints = [line for act in acts for line in act.complaints]
    print("" if not complaints else "\n".join(["", *complaints, ""]))
    notes = (stage.workload.title, *stage.workload.notes)
    series = [act.series for act in acts]
    write_page(html, results, series, example, notes, complaints)
    print(f"Report with plots: {html}")
    if json is not None:
        write_results(json, results)
        print(f"Figures as JSON: {json}")
    if figure is not None:
        write_overview(figure, results, series)
        print(f"Plot: {figure}")


def _happened(act: Act, example: DecisionRecord) -> RequestRecord | None:
    """Return the record of the request that the example is about."""
    wanted = example.request.request_id
    return next((one for one in act.series.records if one.request_id == wanted), None)
