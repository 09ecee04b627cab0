"""Runs a scenario: rows in, one record per row out. Same scenario, rows and seed, same bytes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import InvariantViolation
from spillway.core.events import LogDecision
from spillway.core.lifecycle import State
from spillway.core.policies import build_policy
from spillway.core.types import NodeSpec, RequestView, Role
from spillway.sim.checks import TapedDispatcher, check_cluster, check_end, check_flight, check_log
from spillway.sim.cluster import Cluster
from spillway.sim.flights import Flight, record_of
from spillway.sim.kernel import Kernel
from spillway.sim.node import SimNode
from spillway.sim.reports import Reports
from spillway.sim.scenario import DEFAULT_CLASS, Scenario
from spillway.sim.world import World
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row
from spillway.workload.seeds import stream

EVENTS_PER_REQUEST_MAX = 20_000  # a run that needs more is not going to end
EVENTS_MIN = 1_000_000


class Work(NamedTuple):
    """What a run did: counts, never times."""

    events: int
    steps: int
    segments: int
    preemptions: int
    transfers: int
    reports_told: int
    reports_lost: int
    ignored_events: int
    policy_failures: int


class RunOutput(NamedTuple):
    """policy: as it was named, switches included. records: one per row, in the order of the rows.

    gaps: every token gap.
    counts: requests per final state, as the dispatcher counts them. end_s: virtual time of the end.
    """

    policy: str
    records: list[RequestRecord]
    gaps: GapHistogram
    counts: dict[str, int]
    work: Work
    end_s: float


def run(
    scenario: Scenario,
    rows: Sequence[Row],
    seed: int,
    *,
    checks: bool = False,
    on_decision: Callable[[LogDecision], None] | None = None,
    record_views: bool = False,
) -> RunOutput:
    """Simulate `rows` (ascending arrivals) on the scenario's cluster.

    checks: verify the invariants after every event; a violation shows the last facts.
    on_decision: called with every decision; its cluster view is None unless `record_views`.
    Raises ConfigError on a scenario without sense, InvariantViolation on a bug.
    """
    return Simulation(
        scenario, rows, seed, checks=checks, on_decision=on_decision, record_views=record_views
    ).run()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector: a run makes millions of objects and no cycles."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Simulation:
    """One run with its parts at hand."""

    def __init__(
        self,
        scenario: Scenario,
        rows: Sequence[Row],
        seed: int,
        *,
        checks: bool = False,
        on_decision: Callable[[LogDecision], None] | None = None,
        record_views: bool = False,
    ) -> None:
        self.scenario = scenario
        self.rows = rows
        self.checks = checks
        self.gaps = GapHistogram()
        self.kernel = Kernel(max(EVENTS_MIN, EVENTS_PER_REQUEST_MAX * len(rows)))
        self.records: list[RequestRecord | None] = [None] * len(rows)
        self.specs = scenario.specs()
        limits = DispatchLimits(
            report_age_max_s=scenario.report_age_max_s, retries_max=scenario.retries_max
        )
        policy = build_policy(scenario.policy, scenario.policy_options)
        kind = TapedDispatcher if checks else Dispatcher
        record_views = record_views or checks
        self.dispatcher: Dispatcher = kind(policy, self.specs, limits, record_views=record_views)
        reports = Reports(
            period_s=scenario.report_period_s,
            delay_s=scenario.report_delay_s,
            loss_frac=scenario.report_loss_frac,
            age_max_s=scenario.report_age_max_s,
            rng=stream(seed, "sim.reports"),
            tell=self.dispatcher.handle,
        )
        self.cluster = Cluster(
            self.kernel,
            self.dispatcher,
            [self._node(spec, seed) for spec in self.specs],
            reports,
            done=self._ended,
            order_delay_s=scenario.order_delay_s,
        )
        self._listener = on_decision
        self.cluster.on_decision = self._decided if checks else on_decision
        self._unsettled: list[Flight] = []
        self._patience = stream(seed, "sim.patience")

    def run(self) -> RunOutput:
        """Run to the end. Raises InvariantViolation, with the last facts when checks are on."""
        cluster, kernel = self.cluster, self.kernel
        for fault in self.scenario.faults:
            cluster.inject(fault)
        if self.rows:
            kernel.at(self.rows[0].arrival_s, self._arrive, 0)
        if not isinstance(self.dispatcher, TapedDispatcher):
            with collector_paused():
                kernel.run()
            self._settle()
        else:
            try:
                kernel.run(after_event=partial(check_cluster, cluster))
                self._settle()
                check_end(cluster, self._all_records(), self.gaps)
            except InvariantViolation as violation:
                facts = self.dispatcher.last_facts()
                raise InvariantViolation(f"{violation}\nlast facts:\n{facts}") from violation
        return self._output()

    # --- requests ----------------------------------------------------------------------------

    def _arrive(self, index: int) -> None:
        rows, scenario, kernel = self.rows, self.scenario, self.kernel
        row = rows[index]
        if index + 1 < len(rows):
            kernel.at(rows[index + 1].arrival_s, self._arrive, index + 1)
        slos = scenario.slos
        request_id = f"r{index}"
        request = RequestView(
            request_id,
            row.arrival_s,
            row.prompt_tokens,
            max(scenario.output_tokens_max, row.output_tokens),
            slos.get(row.class_name) or slos[DEFAULT_CLASS],
            row.class_name,
        )
        if scenario.cancel_frac and self._patience.random() < scenario.cancel_frac:
            patience_s = self._patience.expovariate(1 / scenario.patience_s)
            kernel.at(kernel.now_s + patience_s, self.cluster.leave, request_id)
        self.cluster.arrive(Flight(index, request, row.output_tokens))

    def _decided(self, log: LogDecision) -> None:
        check_log(log, self.dispatcher.policy)
        if self._listener is not None:
            self._listener(log)

    def _ended(self, flight: Flight) -> None:
        """Keep the record; of a broken stream only once the step under way has ended, too."""
        if flight.outcome == "finished":
            self._record(flight)
        else:
            self._unsettled.append(flight)

    def _settle(self) -> None:
        for flight in self._unsettled:
            self._record(flight)
        self._unsettled.clear()

    def _record(self, flight: Flight) -> None:
        record = record_of(flight)
        if self.checks:
            check_flight(flight, record)
        self.records[flight.index] = record

    # --- parts -------------------------------------------------------------------------------

    def _node(self, spec: NodeSpec, seed: int) -> SimNode:
        scenario = self.scenario
        world = World(
            spec.profile,
            bias_frac=scenario.bias_frac,
            noise_frac=scenario.noise_frac,
            rng=stream(seed, f"sim.noise.{spec.node_id}"),
        )
        return SimNode(spec, world, gaps=self.gaps)

    def _all_records(self) -> list[RequestRecord]:
        records = [record for record in self.records if record is not None]
        if len(records) != len(self.rows):
            raise InvariantViolation(
                f"INV-2: {len(self.rows)} requests arrived, {len(records)} ended"
            )
        return records

    def _output(self) -> RunOutput:
        cluster, dispatcher = self.cluster, self.dispatcher
        ports = cluster.ports.values()
        work = Work(
            events=self.kernel.events,
            steps=sum(port.node.steps for port in ports),
            segments=sum(port.node.segments for port in ports),
            preemptions=cluster.preemptions,
            transfers=sum(port.link.transfers for port in ports if port.spec.role is Role.PREFILL),
            reports_told=cluster.reports.told,
            reports_lost=cluster.reports.lost,
            ignored_events=dispatcher.ignored_events,
            policy_failures=dispatcher.policy_failures,
        )
        counts = {state.name.lower(): dispatcher.counts[state] for state in State if state.is_final}
        return RunOutput(
            policy=self.scenario.policy,
            records=self._all_records(),
            gaps=self.gaps,
            counts=counts,
            work=work,
            end_s=self.kernel.now_s,
        )
