"""The search for the highest rate that a cluster carries."""

from __future__ import annotations

import pytest

from spillway.core.errors import ConfigError
from spillway.core.types import Slo
from spillway.sim.capacity import (
    DOUBLINGS_MAX,
    PRECISION_FRAC,
    STATIC_POLICIES,
    Load,
    Probe,
    best_static,
    find_capacity,
)
from spillway.sim.loads import Source
from spillway.sim.scenario import Scenario


class Step:
    """Attains everything up to a rate, and nothing beyond."""

    def __init__(self, limit_per_s: float) -> None:
        self.limit_per_s = limit_per_s
        self.asked: list[float] = []

    def __call__(self, rate_per_s: float) -> Probe:
        self.asked.append(rate_per_s)
        return Probe("least-loaded", 1.0 if rate_per_s <= self.limit_per_s else 0.2)


@pytest.mark.parametrize("limit_per_s", [0.7, 3.0, 10.0, 11.0, 900.0])
def test_it_finds_the_rate_within_its_precision_from_either_side(limit_per_s: float) -> None:
    step = Step(limit_per_s)
    found = find_capacity(step, 10.0, 0.9)
    assert limit_per_s / (1 + PRECISION_FRAC) <= found.rate_per_s <= limit_per_s
    assert found.probes == len(step.asked) <= 2 * DOUBLINGS_MAX
    assert found.at == Probe("least-loaded", 1.0)


def test_a_target_out_of_reach_is_said_and_not_searched_for_ever() -> None:
    step = Step(0.0)
    with pytest.raises(ConfigError, match="20% of the requests"):
        find_capacity(step, 10.0, 0.9)
    assert len(step.asked) == DOUBLINGS_MAX


def test_a_cluster_that_never_fails_has_the_last_rate_tried() -> None:
    step = Step(float("inf"))
    found = find_capacity(step, 1.0, 0.9)
    assert found.rate_per_s == 2.0 ** (DOUBLINGS_MAX - 1) == max(step.asked)


@pytest.mark.slow
def test_the_best_static_policy_is_asked_and_the_first_that_suffices_ends_it() -> None:
    source = Source(family="burst")
    scenario = Scenario(slos={"default": Slo(1.0, 0.06)})
    easy = best_static(scenario, source, [1], Load(60, 1.0), 0.9)
    assert easy.policy == STATIC_POLICIES[0]
    assert easy.attained_frac >= 0.9
    hard = best_static(scenario, source, [1], Load(300, 60.0), 0.9)
    assert hard.policy in STATIC_POLICIES
    assert hard.attained_frac < 0.9
