"""How much a cluster carries: the rate of requests up to which enough of them meet their targets.

Attainment falls as the rate rises, apart from the noise of a finite run; the search takes that for
granted and is bounded in the number of runs whatever the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.sim.loads import Source
from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.wire.results import summarise

STATIC_POLICIES = ("least-loaded", "power-of-two", "round-robin")  # those that never deflect
DOUBLINGS_MAX = 10
PRECISION_FRAC = 0.04  # of the rate found


class Probe(NamedTuple):
    """What the best policy attained at a rate."""

    policy: str
    attained_frac: float


class Capacity(NamedTuple):
    """The highest rate found to meet the wanted share, and what was attained at it."""

    rate_per_s: float
    at: Probe
    probes: int


def attained_frac(scenario: Scenario, source: Source, seeds: Sequence[int], load: Load) -> float:
    """Return the share of requests that met both targets (99 % of the gaps), mean over seeds."""
    total_frac = 0.0
    for seed in seeds:
        rows = source.draw(seed, load.requests, load.rate_per_s)
        output = run(scenario, rows, seed)
        figures = summarise(
            policy=scenario.policy, records=output.records, gaps=output.gaps, wall_s=0.0
        )
        total_frac += figures.attainment.joint_99
    return total_frac / len(seeds)


class Load(NamedTuple):
    """How much traffic a probe offers."""

    requests: int
    rate_per_s: float


def best_static(
    scenario: Scenario, source: Source, seeds: Sequence[int], load: Load, wanted_frac: float
) -> Probe:
    """Return the first static policy to attain the wanted share, or else the best of them."""
    best = Probe("", -1.0)
    for policy in STATIC_POLICIES:
        chosen = replace(scenario, policy=policy, policy_options={})
        probe = Probe(policy, attained_frac(chosen, source, seeds, load))
        if probe.attained_frac > best.attained_frac:
            best = probe
        if best.attained_frac >= wanted_frac:
            break
    return best


def find_capacity(
    probe: Callable[[float], Probe], start_per_s: float, wanted_frac: float
) -> Capacity:
    """Return the highest rate at which `probe` attains `wanted_frac`, within PRECISION_FRAC.

    Doubles or halves from the start until the answer is enclosed, then halves the interval on a
    logarithmic scale: at most 2 x DOUBLINGS_MAX probes. A cluster that never fails within the
    doublings has the last rate tried as its capacity. Raises ConfigError when even the lowest rate
    fails: the targets are out of reach at any load.
    """
    low_per_s, high_per_s, held, probes = 0.0, 0.0, Probe("", 0.0), 0
    rate_per_s = start_per_s
    for _ in range(DOUBLINGS_MAX):
        found, probes = probe(rate_per_s), probes + 1
        if found.attained_frac >= wanted_frac:
            low_per_s, held = rate_per_s, found
        else:
            high_per_s = rate_per_s
        if low_per_s and high_per_s:
            break
        rate_per_s = 2 * low_per_s if low_per_s else high_per_s / 2
    if not low_per_s:
        raise ConfigError(
            f"even at {high_per_s:.3g} requests/s only {found.attained_frac:.0%} of the requests "
            f"meet their targets ({wanted_frac:.0%} wanted); loosen the targets, or lower "
            "capacity.attainment_frac"
        )
    while high_per_s > low_per_s * (1 + PRECISION_FRAC):
        middle_per_s = (low_per_s * high_per_s) ** 0.5
        found, probes = probe(middle_per_s), probes + 1
        if found.attained_frac >= wanted_frac:
            low_per_s, held = middle_per_s, found
        else:
            high_per_s = middle_per_s
    return Capacity(low_per_s, held, probes)
