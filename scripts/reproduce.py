"""Measure what docs/reproduction.md tells, and write it: `make reproduce`.

    .venv/bin/python scripts/reproduce.py build/reproduction.parquet

The table is that of examples/reproduction.toml; what it cannot say (a whole trace hour at native
speed, the step-time knee, the cost of a decision) is measured here. The words are in
`reproduction_doc.py`; nothing in them is known before the measurement.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from time import thread_time_ns
from typing import Any, NamedTuple

import reproduction_doc

from spillway.core.decide import Policy
from spillway.core.latency import step_s
from spillway.core.types import Slo
from spillway.sim.run import Simulation, run
from spillway.sim.scenario import Scenario
from spillway.stats import percentile
from spillway.wire.profile import load_profile
from spillway.wire.results import RunResult, summarise
from spillway.wire.sweepfile import Sweep, read_sweep
from spillway.workload.operations import poisson_arrivals, shuffle_lengths
from spillway.workload.row import Row
from spillway.workload.synthetic import family
from spillway.workload.traces import read_trace

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "reproduction.md"
TRACE = ROOT.parent / "shared" / "traces" / "azure2023" / "AzureLLMInferenceTrace_code.csv"
SEED = 1
HOUR_SLO = Slo(2.0, 0.05)
HOUR_PROFILE = "llama-3.1-8b-a100"
CHUNKS_TOKENS = (64, 128, 256, 512, 1024, 2048)
KNEE_PROFILES = ("deepseek-v2-lite-a100-derived", "llama-3.1-8b-a100", "llama-3.1-8b-h100")
KNEE_SEQS, KNEE_CONTEXT_TOKENS = 64, 1024


class HourRun(NamedTuple):
    """One run of the whole trace hour, or of its requests at other times."""

    arrivals: str
    policy: str
    figures: RunResult


class Knee(NamedTuple):
    """What a chunk adds to a decode step, seconds by chunk size."""

    profile: str
    decode_step_s: float
    added_s: dict[int, float]


class DecisionCost(NamedTuple):
    """Processor microseconds of `decide` over one run."""

    policy: str
    decisions: int
    p50_us: float
    p99_us: float


class Measured(NamedTuple):
    """Everything that the page tells. hour: empty without the trace."""

    sweep: Sweep
    hour: tuple[HourRun, ...]
    hour_profile: str
    hour_targets_s: tuple[float, float]
    prefill_tokens_per_s: float
    knee_seqs: int
    knees: tuple[Knee, ...]
    costs: tuple[DecisionCost, ...]


def measure(sweep: Sweep) -> Measured:
    """Run what the table cannot say. About a minute."""
    profile = load_profile(HOUR_PROFILE)
    return Measured(
        sweep=sweep,
        hour=trace_hour() if TRACE.exists() else (),
        hour_profile=HOUR_PROFILE,
        hour_targets_s=(HOUR_SLO.ttft_s, HOUR_SLO.tbt_s),
        knee_seqs=KNEE_SEQS,
        prefill_tokens_per_s=2048 / step_s(profile, 0, 0, 2048, 0),
        knees=tuple(map(knee, KNEE_PROFILES)),
        costs=tuple(map(decision_cost, ("least-loaded", "kairos-paper", "headroom"))),
    )


def trace_hour() -> tuple[HourRun, ...]:
    """Return the Azure code hour at native speed on 2P2D, and what is left of its tail without."""
    rows = read_trace(TRACE, seed=SEED).rows
    cases: list[tuple[str, str, Sequence[Row]]] = [
        ("as recorded", "least-loaded", rows),
        ("dealt out anew", "least-loaded", shuffle_lengths(rows, SEED)),
        ("Poisson", "least-loaded", poisson_arrivals(rows, SEED)),
        ("as recorded", "round-robin", rows),
        ("as recorded", "kairos-paper", rows),
        ("as recorded", "headroom", rows),
    ]
    return tuple(
        HourRun(arrivals, policy, _figures(policy, kept)) for arrivals, policy, kept in cases
    )


def _figures(policy: str, rows: Sequence[Row]) -> RunResult:
    scenario = Scenario(policy=policy, profile=HOUR_PROFILE, slos={"default": HOUR_SLO})
    output = run(scenario, rows, SEED)
    return summarise(policy=policy, records=output.records, gaps=output.gaps, wall_s=0.0)


def knee(name: str) -> Knee:
    """Return what chunks of each size add to a step of KNEE_SEQS streams."""
    profile, kv_tokens = load_profile(name), KNEE_SEQS * KNEE_CONTEXT_TOKENS
    bare_s = step_s(profile, KNEE_SEQS, kv_tokens)
    added_s = {
        tokens: step_s(profile, KNEE_SEQS, kv_tokens, tokens, 0) - bare_s
        for tokens in CHUNKS_TOKENS
    }
    return Knee(name, bare_s, added_s)


class Timed:
    """A policy with a stopwatch on its decisions."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.taken_ns: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def decide(self, *facts: Any) -> Any:
        """Decide, and note how long that took."""
        start_ns = thread_time_ns()
        decision = self.policy.decide(*facts)
        self.taken_ns.append(thread_time_ns() - start_ns)
        return decision


def decision_cost(policy: str) -> DecisionCost:
    """Return the cost of a decision on 2P2D under a burst."""
    rows = family("burst", SEED, 200.0)
    simulation = Simulation(Scenario(policy=policy, profile=HOUR_PROFILE), rows, SEED)
    timed = Timed(simulation.dispatcher.policy)
    simulation.dispatcher.policy = timed  # type: ignore[assignment]
    simulation.run()
    taken_us = sorted(one / 1e3 for one in timed.taken_ns)
    return DecisionCost(
        policy, len(taken_us), percentile(taken_us, 0.5), percentile(taken_us, 0.99)
    )


def main(arguments: Sequence[str]) -> int:
    """Write the page from the table of a sweep."""
    if len(arguments) != 1:
        print("usage: reproduce.py TABLE.parquet", file=sys.stderr)
        return 2
    TARGET.write_text(reproduction_doc.page(measure(read_sweep(Path(arguments[0])))), "utf-8")
    print(f"written: {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
