"""Runs a scenario: rows in, one record per row out. Same scenario, rows and seed, same bytes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from typing import ClassVar, NamedTuple

from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import InvariantViolation
from spillway.core.events import LogDecision
from spillway.core.lifecycle import State
from spillway.core.policies import build_policy
from spillway.core.prefixes import PrefixIndex
from spillway.core.shadow import routing_policy, with_shadow
from spillway.core.types import NodeId, NodeSpec, RequestView, Role
from spillway.sim.checks import (
    TapedDispatcher,
    check_cluster,
    check_end,
    check_flight,
    check_log,
    last_facts,
)
from spillway.sim.cluster import Cluster
from spillway.sim.flights import Flight, record_of
from spillway.sim.kernel import Kernel
from spillway.sim.node import SimNode
from spillway.sim.prompt_name import NO_NAME, PromptName, blocks_together, name_prompt
from spillway.sim.reports import Reports
from spillway.sim.routers import Routers, several
from spillway.sim.scenario import DEFAULT_CLASS, Scenario
from spillway.sim.turns import Turns
from spillway.sim.world import World
from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row
from spillway.workload.seeds import stream

EVENTS_PER_REQUEST_MAX = 20_000  # a run that needs more is not going to end
EVENTS_MIN = 1_000_000
DRIFT_STEPS = 64
BLOCKS_MAX = 1 << 20  # remembered of a node whose KV room is not known


class Work(NamedTuple):
    """What a run did: counts, never times.

    prefix_*_tokens: prompt tokens that nodes looked up in their prefix caches, and found there.
    declined: deflections that a node did not take, because other routers had sent it more.
    """

    events: int
    steps: int
    segments: int
    preemptions: int
    transfers: int
    reports_told: int
    reports_lost: int
    ignored_events: int
    policy_failures: int
    prefix_asked_tokens: int = 0
    prefix_hit_tokens: int = 0
    evicted_blocks: int = 0
    declined: int = 0


class RunOutput(NamedTuple):
    """policy: as it was named, switches included. records: one per row, in the order of the rows;
    none if they were not to be kept.

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
    on_record: Callable[[int, RequestRecord], None] | None = None,
    keep_records: bool = True,
) -> RunOutput:
    """Simulate `rows` (ascending arrivals) on the scenario's cluster.

    checks: verify the invariants after every event; a violation shows the last facts.
    on_decision: called with every decision; its cluster view is None unless `record_views`.
    on_record: called with the number of a row and its record when the request has ended.
    keep_records: False spares some 600 bytes a request; with checks they are kept all the same.
    Raises ConfigError on a scenario without sense, InvariantViolation on a bug.
    """
    return Simulation(
        scenario,
        rows,
        seed,
        checks=checks,
        on_decision=on_decision,
        record_views=record_views,
        on_record=on_record,
        keep_records=keep_records,
    ).run()


def _limits(scenario: Scenario) -> DispatchLimits:
    return DispatchLimits(
        report_age_max_s=scenario.report_age_max_s,
        retries_max=scenario.retries_max,
        calibrated=scenario.calibrated,
    )


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
    """One run with its parts at hand. node_kind: what its nodes are, for a run that is watched."""

    node_kind: ClassVar[type[SimNode]] = SimNode

    def __init__(
        self,
        scenario: Scenario,
        rows: Sequence[Row],
        seed: int,
        *,
        checks: bool = False,
        on_decision: Callable[[LogDecision], None] | None = None,
        record_views: bool = False,
        on_record: Callable[[int, RequestRecord], None] | None = None,
        keep_records: bool = True,
    ) -> None:
        self.scenario = scenario
        self.rows = rows
        self.checks = checks
        self.gaps = GapHistogram()
        self.kernel = Kernel(max(EVENTS_MIN, EVENTS_PER_REQUEST_MAX * len(rows)))
        self.records: list[RequestRecord | None] = []  # empty: they are not kept
        if keep_records or checks:
            self.records = [None] * len(rows)
        self._on_record = on_record
        self._recorded = 0
        self.specs = scenario.specs()
        policy = build_policy(scenario.policy, scenario.policy_options)
        if scenario.shadow:
            policy = with_shadow(policy, build_policy(scenario.shadow), scenario.shadow)
        self._policy = policy
        make = partial(
            TapedDispatcher if checks else Dispatcher,
            *(policy, self.specs, _limits(scenario)),
            record_views=record_views or checks,
        )
        rng = stream(seed, "sim.routers")
        self.dispatcher: Dispatcher | Routers = several(scenario.routers, make, rng)
        reports = Reports(
            period_s=scenario.report_period_s,
            delay_s=scenario.report_delay_s,
            loss_frac=scenario.report_loss_frac,
            age_max_s=scenario.report_age_max_s,
            rng=stream(seed, "sim.reports"),
            tell=self.dispatcher.handle,
        )
        # Rows without prefix blocks cost nothing.
        self._shares = any(row.prefix_blocks for row in rows)
        self.cluster = Cluster(
            self.kernel,
            self.dispatcher,
            [self._node(spec, seed) for spec in self.specs],
            reports,
            done=self._ended,
            order_delay_s=scenario.order_delay_s,
            prefixes=self._index() if self._shares and scenario.prefix_index else None,
        )
        self._turns = Turns(rows) if scenario.closed_loop else None
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
            for index in self._turns.first if self._turns is not None else (0,):
                kernel.at(self.rows[index].arrival_s, self._arrive, index)
            self._plan_drift()
        if not self.checks:
            with collector_paused():
                kernel.run()
            self._settle()
        else:
            try:
                kernel.run(after_event=partial(check_cluster, cluster))
                self._settle()
                check_end(cluster, self._all_records(), self.gaps)
            except InvariantViolation as violation:
                facts = last_facts(self.dispatcher)
                raise InvariantViolation(f"{violation}\nlast facts:\n{facts}") from violation
        return self._output()

    def _plan_drift(self) -> None:
        """Let the drift grow from the first arrival to the last, in small equal steps."""
        drift_frac, rows = self.scenario.drift_frac, self.rows
        span_s = rows[-1].arrival_s - rows[0].arrival_s
        for step in range(1, DRIFT_STEPS + 1) if drift_frac else ():
            share = step / DRIFT_STEPS
            at_s = rows[0].arrival_s + share * span_s
            self.kernel.at(at_s, self.cluster.drift, 1.0 + drift_frac * share)

    # --- requests ----------------------------------------------------------------------------

    def _arrive(self, index: int) -> None:
        rows, scenario, kernel = self.rows, self.scenario, self.kernel
        row = rows[index]
        if self._turns is not None:
            next_s = kernel.now_s  # any answer may bring another turn at once
        else:
            next_s = rows[index + 1].arrival_s if index + 1 < len(rows) else inf
            if next_s < inf:
                kernel.at(next_s, self._arrive, index + 1)
        slos, output_tokens = scenario.slos, row.output_tokens
        declared_tokens = scenario.output_tokens_max
        request_id = f"r{index}"
        prompt = name_prompt(row) if row.prefix_blocks else NO_NAME
        request = RequestView(
            request_id,
            kernel.now_s,
            row.prompt_tokens,
            declared_tokens if declared_tokens > output_tokens else output_tokens,
            slos.get(row.class_name) or slos[DEFAULT_CLASS],
            row.class_name,
            self._cached(prompt) if prompt.chain else (),
        )
        if scenario.cancel_frac and self._patience.random() < scenario.cancel_frac:
            patience_s = self._patience.expovariate(1 / scenario.patience_s)
            kernel.at(kernel.now_s + patience_s, self.cluster.leave, request_id)
        flight = Flight(index, request, row.output_tokens, prompt.chain, prompt.block_tokens)
        self.cluster.arrive(flight, next_s)

    def _cached(self, prompt: PromptName) -> tuple[tuple[NodeId, int], ...]:
        """Return who is believed to hold how many leading tokens of the prompt."""
        prefixes = self.cluster.prefixes
        if prefixes is None:
            return ()
        return prefixes.held(prompt.chain, prompt.block_tokens, self.kernel.now_s)

    def _decided(self, log: LogDecision) -> None:
        check_log(log, routing_policy(self._policy))
        if self._listener is not None:
            self._listener(log)

    def _ended(self, flight: Flight) -> None:
        """Keep the record; of a broken stream only once the step under way has ended, too."""
        if self._turns is not None:
            turn = self._turns.after(flight.index, self.kernel.now_s)
            if turn is not None:
                self.kernel.at(turn.start_s, self._arrive, turn.number)
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
        if self.records:
            self.records[flight.index] = record
        if self._on_record is not None:
            self._on_record(flight.index, record)
        self._recorded += 1

    # --- parts -------------------------------------------------------------------------------

    def _index(self) -> PrefixIndex:
        """Return an index with as many blocks per node as it has KV room for."""
        sizes = {row.block_tokens for row in self.rows if row.prefix_blocks}
        block_tokens = min(blocks_together(size) * size for size in sizes)
        room = {
            spec.node_id: spec.kv_capacity_tokens // block_tokens or BLOCKS_MAX
            for spec in self.specs
        }
        return PrefixIndex(room.__getitem__, stale_s=self.scenario.prefix_stale_s)

    def _node(self, spec: NodeSpec, seed: int) -> SimNode:
        scenario = self.scenario
        world = World(
            spec.profile,
            bias_frac=scenario.bias_of(spec.node_id),
            noise_frac=scenario.noise_frac,
            rng=stream(seed, f"sim.noise.{spec.node_id}"),
        )
        return self.node_kind(
            spec,
            world,
            gaps=self.gaps,
            prefix_cache=self._shares and scenario.prefix_cache,
            learning=scenario.calibrated,
        )

    def _all_records(self) -> list[RequestRecord]:
        if self._recorded != len(self.rows):
            raise InvariantViolation(
                f"INV-2: {len(self.rows)} requests arrived, {self._recorded} ended"
            )
        return [record for record in self.records if record is not None]

    def _output(self) -> RunOutput:
        cluster, dispatcher = self.cluster, self.dispatcher
        ports = cluster.ports.values()
        caches = [port.node.cache_counts for port in ports if port.node.cache_counts is not None]
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
            prefix_asked_tokens=sum(counts.asked_tokens for counts in caches),
            prefix_hit_tokens=sum(counts.hit_tokens for counts in caches),
            evicted_blocks=sum(counts.evicted_blocks for counts in caches),
            declined=cluster.routers.declined if cluster.routers is not None else 0,
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
