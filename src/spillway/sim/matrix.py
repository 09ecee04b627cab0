"""A matrix of runs: which there are, what each of them is, and how one is run.

Everything here is a function of the matrix file and the traces it names, so any worker computes
the same rows in whatever order it is handed them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from math import inf
from pathlib import Path
from typing import NamedTuple

import msgspec

import spillway
from spillway.core.errors import ConfigError
from spillway.core.types import ChunkMode, Slo
from spillway.sim.capacity import Load, Probe, best_static, find_capacity
from spillway.sim.loads import Source
from spillway.sim.run import run
from spillway.sim.scenario import DEFAULT_CLASS, Scenario
from spillway.wire.cells import CellKey, CellResult, CellSetting, cell_result
from spillway.wire.matrix import CapacitySetting, Matrix, WorkloadSetting
from spillway.wire.profile import load_profile_file
from spillway.wire.results import summarise
from spillway.wire.sweepfile import CapacityFound, SweepHead
from spillway.workload.operations import apply_operation, window
from spillway.workload.row import Row
from spillway.workload.synthetic import FAMILIES
from spillway.workload.traces import read_trace

TRACE_SEED = 0  # of what is drawn while a trace is read and changed; runs draw from their own
CODE_THAT_COUNTS = ("core", "sim", "workload", "wire")  # a change in these may change a figure


class Place(NamedTuple):
    """A workload on a cluster with targets: what a capacity is measured for."""

    workload: str
    target: str
    cluster: str
    fidelity: str


@dataclass(frozen=True, slots=True)
class CapacityTask:
    """One measurement of capacity, complete in itself: it can be sent to any worker."""

    place: Place
    scenario: Scenario
    source: Source
    setting: CapacitySetting

    def __call__(self) -> CapacityFound:
        """Measure. Raises ConfigError, naming the place, when the targets are out of reach."""
        setting = self.setting

        def probe(rate_per_s: float) -> Probe:
            load = Load(setting.requests, rate_per_s)
            wanted_frac = setting.attainment_frac
            return best_static(self.scenario, self.source, setting.seeds, load, wanted_frac)

        try:
            start_per_s = self.source.usual_rate_per_s()
            found = find_capacity(probe, start_per_s, setting.attainment_frac)
        except ConfigError as error:
            raise ConfigError(f"{' / '.join(self.place)}: {error}") from None
        return CapacityFound(
            **self.place._asdict(),
            policy=found.at.policy,
            capacity_per_s=found.rate_per_s,
            attained_frac=found.at.attained_frac,
            probes=found.probes,
        )


@dataclass(frozen=True, slots=True)
class CellsTask:
    """The runs of several policies on the same requests, complete in itself."""

    keys: tuple[CellKey, ...]
    scenario: Scenario
    source: Source
    requests: int
    capacity_per_s: float

    def rows(self) -> list[Row]:
        """Return the requests of every one of these runs."""
        key = self.keys[0]
        return self.source.draw(key.seed, self.requests, key.load_frac * self.capacity_per_s)

    def __call__(self) -> list[CellResult]:
        """Run them one after another."""
        rows = self.rows()
        return [self._run(key, rows) for key in self.keys]

    def _run(self, key: CellKey, rows: Sequence[Row]) -> CellResult:
        output = run(replace(self.scenario, policy=key.policy), rows, key.seed)
        figures = summarise(policy=key.policy, records=output.records, gaps=output.gaps, wall_s=0.0)
        slo = self.scenario.slos[DEFAULT_CLASS]
        setting = CellSetting(
            rate_per_s=key.load_frac * self.capacity_per_s,
            capacity_per_s=self.capacity_per_s,
            slo_ttft_s=slo.ttft_s,
            slo_tbt_s=slo.tbt_s,
            preemptions=output.work.preemptions,
            policy_failures=output.work.policy_failures,
        )
        return cell_result(key, setting, figures, output.records, output.gaps)


class Plan:
    """Every run of a matrix, in order.

    head: what the results say they are of.   notes: what was left out, and why.
    """

    def __init__(self, matrix: Matrix, sources: Mapping[str, Source], head: SweepHead) -> None:
        self.matrix = matrix
        self.sources = sources
        self.head = head
        axes = product(sources, matrix.targets, matrix.clusters, matrix.fidelity)
        self.places = [Place(*names) for names in axes]
        self.keys = [
            CellKey(*place, load_frac, seed, policy)
            for place in self.places
            for load_frac in matrix.loads
            for seed in matrix.seeds
            for policy in matrix.policy_names
        ]

    def capacity_tasks(self, done: Collection[Place]) -> list[CapacityTask]:
        """Return the capacities still to be measured."""
        return [
            CapacityTask(
                place, self.scenario(place), self.sources[place.workload], self.matrix.capacity
            )
            for place in self.places
            if place not in done
        ]

    def cells_tasks(
        self, capacities: Sequence[CapacityFound], done: Collection[CellKey]
    ) -> Iterator[CellsTask]:
        """Yield the runs still to be made, those on the same requests together."""
        capacity_per_s = {place_of(found): found.capacity_per_s for found in capacities}
        axes = product(self.places, self.matrix.loads, self.matrix.seeds)
        for place, load_frac, seed in axes:
            keys = [CellKey(*place, load_frac, seed, policy) for policy in self.matrix.policy_names]
            if left := [key for key in keys if key not in done]:
                yield self.cells_task(left, capacity_per_s[place])

    def cells_task(self, keys: Sequence[CellKey], capacity_per_s: float) -> CellsTask:
        """Return the task of runs that share everything but their policy."""
        key = keys[0]
        scenario = self.scenario(place_of(key))
        source = self.sources[key.workload]
        return CellsTask(tuple(keys), scenario, source, self.matrix.requests, capacity_per_s)

    def scenario(self, place: Place) -> Scenario:
        """Return the scenario of a place, of whatever policy."""
        matrix = self.matrix
        target, cluster = matrix.targets[place.target], matrix.clusters[place.cluster]
        fidelity = matrix.fidelity[place.fidelity]
        scenario = Scenario(
            cluster=cluster.nodes,
            profile=cluster.profile,
            kv_capacity_tokens=cluster.kv_capacity_tokens,
            link_bytes_per_s=cluster.link_bytes_per_s,
            slos={DEFAULT_CLASS: Slo(target.ttft_s, target.tbt_s)},
            bias_frac=fidelity.bias_frac,
            noise_frac=fidelity.noise_frac,
            report_period_s=fidelity.report_period_s,
            report_delay_s=fidelity.report_delay_s,
            report_loss_frac=fidelity.report_loss_frac,
        )
        chunk_tokens = fidelity.decode_chunk_tokens
        if chunk_tokens is None:
            return scenario
        return replace(scenario, chunk_mode=ChunkMode.STATIC, chunk_tokens_max=chunk_tokens)


def place_of(named: CapacityFound | CellKey) -> Place:
    """Return the place that a capacity or a run is of."""
    return Place(named.workload, named.target, named.cluster, named.fidelity)


def _part(setting: WorkloadSetting, path: Path) -> tuple[tuple[Row, ...], list[str]]:
    """Return the requests that windows are cut from, and what was done to the trace's."""
    to_s = inf if setting.to_s is None else setting.to_s
    trace = read_trace(path, seed=TRACE_SEED, from_s=setting.from_s, to_s=to_s)
    notes = [note for note in (*trace.notes, trace.dropped_text()) if note]
    rows = window(trace.rows, setting.from_s or trace.from_s, to_s)
    for text in setting.apply:
        rows, note = apply_operation(rows, text, TRACE_SEED)
        notes.append(note)
    return tuple(rows), notes


def make_plan(matrix: Matrix, folder: Path) -> Plan:
    """Return the plan of a matrix whose traces lie relative to `folder`.

    Reads the traces. Raises ConfigError on an unknown family, a missing trace that is not optional,
    a profile or a cluster without sense, or when no workload is left.
    """
    sources: dict[str, Source] = {}
    notes: list[str] = []
    digest = sha256(msgspec.json.encode(matrix.as_data(), order="sorted") + _code())
    for name, setting in matrix.workloads.items():
        if setting.synthetic:
            if setting.synthetic not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise ConfigError(
                    f"workload {name}: family {setting.synthetic!r} is unknown; one of {known}"
                )
            sources[name] = Source(family=setting.synthetic)
            continue
        path = folder / setting.trace
        if setting.optional and not path.exists():
            notes.append(f"workload {name} was left out: its trace {setting.trace} is not there")
            continue
        part, said = _part(setting, path)
        if not part:
            raise ConfigError(f"workload {name}: no request in that part of {setting.trace}")
        notes += (f"workload {name}: {note}" for note in said)
        digest.update(repr(part).encode())
        sources[name] = Source(rows=part)
    if not sources:
        raise ConfigError("no workload is left: every one is optional and absent")
    for cluster in matrix.clusters.values():
        profile = load_profile_file(cluster.profile)
        notes += (caveat for caveat in profile.caveats() if caveat not in notes)
        digest.update(msgspec.json.encode(profile))
    digest.update("/".join(sources).encode())
    head = SweepHead(
        matrix=matrix.as_data(),
        digest=digest.hexdigest(),
        spillway_version=spillway.__version__,
        notes=tuple(notes),
    )
    plan = Plan(matrix, sources, head)
    for place in plan.places:
        plan.scenario(place).specs()
    return plan


def _code() -> bytes:
    """Return a digest of the code that a figure depends on: a sweep mixes no two versions of it."""
    root = Path(__file__).parents[1]
    digest = sha256()
    for folder in CODE_THAT_COUNTS:
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.digest()
