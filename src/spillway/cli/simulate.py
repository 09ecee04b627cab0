"""`spillway simulate`: policies compared on a virtual clock, on the same rows and the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spillway.cli import fidelity, options, shadowing
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.cli.output import Advance
    from spillway.cli.rows import Workload
    from spillway.core.events import LogDecision
    from spillway.sim.run import RunOutput
    from spillway.sim.scenario import Scenario
    from spillway.wire.results import RunResult

BAR_STRIDE = 100  # decisions between two looks of the progress bar


def simulate(
    trace: options.Trace = None,
    synthetic: options.Synthetic = None,
    rate: options.Rate = None,
    duration_s: options.Duration = 300.0,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    apply: options.Apply = None,
    seed: options.Seed = options.DEFAULT_SEED,
    closed_loop: fidelity.ClosedLoop = False,
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    policy: options.Policies = None,
    shadow: shadowing.Shadow = None,
    profile: options.Profile = DEFAULT_PROFILE,
    link: options.LinkName = None,
    bias: options.Bias = 1.0,
    noise: options.Noise = 0.0,
    drift: fidelity.Drift = 0.0,
    node: fidelity.OwnNodes = None,
    report_period_s: options.ReportPeriod = 0.1,
    report_delay_s: fidelity.ReportDelay = 0.0,
    report_loss: fidelity.ReportLoss = 0.0,
    routers: fidelity.Routers = 1,
    decode_chunk_tokens: options.DecodeChunkTokens = None,
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    json: options.Json = None,
    html: options.Html = None,
    figure: options.Figure = None,
    decisions: options.Decisions = None,
    records: options.Records = None,
    check: fidelity.Check = False,
) -> None:
    """Compare policies in simulation: an hour of traffic in seconds.

    The simulator drives the very dispatcher that the router runs: what it
    decides here it decides there. With --bias, --noise and --drift, nodes behave
    otherwise than the router believes; with --node they differ from one another.

    [bold]Examples[/bold]
      spillway simulate --synthetic burst --html build/sim.html
      spillway simulate --trace azure.csv --from-s 600 --to-s 1200 --apply thin=0.5
      spillway simulate --cluster 4p8d --policy least-loaded --policy headroom
      spillway simulate --policy least-loaded --shadow headroom
    """
    from spillway.cli.rows import Ask, choose_rows, with_caveats
    from spillway.sim.run import collector_paused

    asked = Ask(trace, synthetic, rate, duration_s, from_s, to_s, speed_up, seed, None, apply)
    files = Written(json, html, figure, decisions, records)
    with collector_paused():
        workload = with_caveats(choose_rows(asked), profile)
        of_nodes = (cluster, profile, link, bias, noise, report_period_s, decode_chunk_tokens)
        scenario = make_scenario(*of_nodes, (slo_ttft_s, slo_tbt_s))
        scenario = _differing(scenario, node, drift, report_delay_s, report_loss, shadow, routers)
        scenario, workload = _looped(scenario, workload, closed_loop)
        compared = _compare(scenario, workload, policy, seed, files, checks=check)
    _show(compared, run_config(scenario, workload), workload, seed, files)


class Written(NamedTuple):
    """Files to write; None for one that was not asked for. decisions, records: the last run's."""

    json: Path | None
    html: Path | None
    figure: Path | None
    decisions: Path | None
    records: Path | None

    def keeps_decisions(self, scenario: Scenario) -> bool:
        """Say whether something of every decision will be shown or written."""
        return self.decisions is not None or self.html is not None or bool(scenario.shadow)

    def keeps_records(self, scenario: Scenario) -> bool:
        """Say whether something of every record will be, other than sums."""
        files = (self.html, self.figure, self.records)
        return bool(scenario.shadow) or any(path is not None for path in files)


class Compared(NamedTuple):
    """One policy's run, as simulated and as summed up.

    Its decisions, and the records of its output, are empty unless asked for.
    """

    output: RunOutput
    run: RunResult
    decisions: list[LogDecision]


def make_scenario(
    cluster: str,
    profile: str,
    link: str | None,
    bias_frac: float,
    noise_frac: float,
    report_period_s: float,
    decode_chunk_tokens: int | None,
    targets_s: tuple[float, float],
) -> Scenario:
    """Return the scenario that the flags of the same names describe; targets_s: TTFT and TBT.

    Raises ConfigError on a cluster, link or figure without sense.
    """
    from dataclasses import replace

    from spillway.core.types import ChunkMode, Slo
    from spillway.sim.scenario import Scenario
    from spillway.wire.links import named_link

    scenario = Scenario(
        cluster=cluster,
        profile=profile,
        slos={"default": Slo(*targets_s)},
        bias_frac=bias_frac,
        noise_frac=noise_frac,
        report_period_s=report_period_s,
    )
    if link is not None:
        named = named_link(link)
        scenario = replace(scenario, link_bytes_per_s=named.bytes_per_s, link_base_s=named.base_s)
    if decode_chunk_tokens is None:
        return scenario
    return replace(scenario, chunk_mode=ChunkMode.STATIC, chunk_tokens_max=decode_chunk_tokens)


def _differing(
    scenario: Scenario,
    nodes: Sequence[str] | None,
    drift_frac: float,
    report_delay_s: float,
    report_loss_frac: float,
    shadow: str | None,
    routers: int,
) -> Scenario:
    from dataclasses import replace

    from spillway.core.errors import ConfigError
    from spillway.sim.nodes import parse_node_change

    changes = dict(parse_node_change(text) for text in nodes or ())
    if len(changes) < len(nodes or ()):
        raise ConfigError("--node names one node twice; give all that it has of its own at once")
    return replace(
        scenario,
        nodes=changes,
        drift_frac=drift_frac,
        report_delay_s=report_delay_s,
        report_loss_frac=report_loss_frac,
        shadow=shadow or "",
        routers=routers,
    )


def _looped(scenario: Scenario, workload: Workload, closed_loop: bool) -> tuple[Scenario, Workload]:
    """Return both for a closed loop, if that is wanted. Raises ConfigError without sessions."""
    from dataclasses import replace

    from spillway.sim.turns import Turns

    if not closed_loop:
        return scenario, workload
    notes = (*workload.notes, Turns(workload.rows).note())
    return replace(scenario, closed_loop=True), workload._replace(notes=notes)


def _compare(
    scenario: Scenario,
    workload: Workload,
    policies: Sequence[str] | None,
    seed: int,
    files: Written,
    *,
    checks: bool,
) -> list[Compared]:
    """Run each policy on the same rows. Raises ConfigError before the first run if one is wrong."""
    from dataclasses import replace

    from spillway.cli.output import announce, progress
    from spillway.core.policies import build_policy

    policies = policies or options.COMPARED_POLICIES
    for name in (*policies, *filter(None, [scenario.shadow])):
        build_policy(name)
    announce(workload.title, workload.notes)
    compared: list[Compared] = []
    with progress("simulating", len(workload.rows) * len(policies)) as advance:
        for name in policies:
            run_one = _Run(replace(scenario, policy=name), workload, seed, advance, len(compared))
            compared.append(run_one(files, checks=checks))
    return compared


class _Run:
    """One policy's run, watched by the progress bar."""

    def __init__(
        self, scenario: Scenario, workload: Workload, seed: int, advance: Advance, done_runs: int
    ) -> None:
        self.scenario = scenario
        self.workload = workload
        self.seed = seed
        self.decisions: list[LogDecision] = []
        self._advance = advance
        self._decided = done_runs * len(workload.rows)

    def __call__(self, files: Written, *, checks: bool) -> Compared:
        from spillway.clock import MonotonicClock
        from spillway.sim.run import run
        from spillway.wire.results import run_result
        from spillway.wire.tally import Tally

        clock, tally = MonotonicClock(), Tally(len(self.workload.rows))
        start_s = clock.now_s()
        output = run(
            self.scenario,
            self.workload.rows,
            self.seed,
            checks=checks,
            on_decision=self._keep if files.keeps_decisions(self.scenario) else self._count,
            on_record=tally.add,
            keep_records=files.keeps_records(self.scenario),
        )
        wall_s = clock.now_s() - start_s
        summary = run_result(tally, policy=output.policy, gaps=output.gaps, wall_s=wall_s)
        return Compared(output, summary, self.decisions)

    def _count(self, decided: LogDecision) -> None:
        self._decided += 1
        if self._decided % BAR_STRIDE == 0:
            self._advance(self._decided, self.scenario.policy)

    def _keep(self, decided: LogDecision) -> None:
        self.decisions.append(decided)
        self._count(decided)


def _show(
    compared: Sequence[Compared],
    config: dict[str, Any],
    workload: Workload,
    seed: int,
    written: Written,
) -> None:
    """Print the table, and write what was asked for."""
    from spillway.cli.example import best_example
    from spillway.cli.output import make_results, note, write_overview, write_page, write_results
    from spillway.report.plots import Series
    from spillway.report.tables import print_comparison
    from spillway.wire.decisions import from_log

    results = make_results([one.run for one in compared], seed, config)
    print_comparison(results.runs)
    for one in compared:
        _show_shadow(one)
    series = [Series(one.run.policy, one.output.records, one.output.gaps) for one in compared]
    if written.json is not None:
        write_results(written.json, results)
        note(f"figures: {written.json}")
    if written.figure is not None:
        write_overview(written.figure, results, series)
        note(f"plot: {written.figure}")
    if written.html is not None:
        examples = (
            best_example(from_log(log, one.run.policy) for log in one.decisions)
            for one in reversed(compared)
        )
        example = next((one for one in examples if one is not None), None)
        write_page(written.html, results, series, example, (workload.title, *workload.notes))
        note(f"report: {written.html}")
    _write_last(written, compared[-1])


def _show_shadow(one: Compared) -> None:
    """Print what the policy that looked on would have done, if one did."""
    from spillway.report.shadow import compare_shadow, print_shadow
    from spillway.wire.decisions import from_log

    logs = [log for log in one.decisions if log.decision.shadow is not None]
    found = compare_shadow(
        [from_log(log, one.run.policy) for log in logs],
        {r.request_id: r.ttft_s for r in one.output.records if r.ttft_s is not None},
    )
    if found is not None:
        print()
        print_shadow(found)


def run_config(scenario: Scenario, workload: Workload) -> dict[str, Any]:
    """Return everything that shaped the figures, for the results."""
    slo = scenario.slos["default"]
    return {
        "command": "simulate",
        **workload.config,
        "cluster": scenario.cluster,
        "profile": scenario.profile,
        "link_bytes_per_s": scenario.link_bytes_per_s,
        "link_base_s": scenario.link_base_s,
        "closed_loop": scenario.closed_loop,
        "slo_ttft_s": slo.ttft_s,
        "slo_tbt_s": slo.tbt_s,
        "bias": scenario.bias_frac,
        "noise": scenario.noise_frac,
        "drift": scenario.drift_frac,
        "nodes": {name: change.given() for name, change in scenario.nodes.items()},
        "report_period_s": scenario.report_period_s,
        "report_delay_s": scenario.report_delay_s,
        "report_loss": scenario.report_loss_frac,
        "routers": scenario.routers,
        "chunk_mode": scenario.chunk_mode.value,
        "chunk_tokens_max": scenario.chunk_tokens_max,
    }


def _write_last(written: Written, last: Compared) -> None:
    from spillway.cli.output import note, write_bytes, write_records

    name = last.run.policy
    if written.decisions is not None:
        from spillway.router.decision_log import encode_line

        lines = [encode_line(log, name) for log in last.decisions]
        write_bytes(written.decisions, b"".join(lines))
        note(f"decisions of {name}: {written.decisions}")
    if written.records is not None:
        write_records(written.records, last.output.records)
        note(f"records of {name}: {written.records}")
