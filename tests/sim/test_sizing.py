"""The search for the smallest clusters."""

from __future__ import annotations

import pytest

from spillway.sim.scenario import Scenario
from spillway.sim.sizing import Sized, fewest_nodes, smallest_clusters, try_cluster
from spillway.workload.synthetic import family


class Needs:
    """Suffices from some pairs on: the sum of shares must reach 1."""

    def __init__(self, prefill_frac: float, decode_frac: float) -> None:
        self.prefill_frac = prefill_frac
        self.decode_frac = decode_frac
        self.asked: list[tuple[int, int]] = []

    def __call__(self, prefill_count: int, decode_count: int) -> Sized:
        self.asked.append((prefill_count, decode_count))
        enough = prefill_count * self.prefill_frac + decode_count * self.decode_frac >= 1 - 1e-9
        return Sized(prefill_count, decode_count, 1.0 if enough else 0.5, 0.1, 0.0)


@pytest.mark.parametrize("shares", [(0.3, 0.1), (0.1, 0.3), (0.25, 0.25), (1.0, 1.0), (0.05, 0.12)])
def test_it_finds_what_trying_every_pair_finds(shares: tuple[float, float]) -> None:
    needs, nodes_max = Needs(*shares), 8
    steps = smallest_clusters(needs, 0.9, nodes_max)
    assert len(needs.asked) <= 2 * nodes_max
    every = [
        found
        for prefill_count in range(1, nodes_max + 1)
        for decode_count in range(1, nodes_max + 1)
        if (found := needs(prefill_count, decode_count)).attained_frac >= 0.9
    ]
    least = [
        one
        for one in every
        if not any(
            other != one
            and other.prefill_count <= one.prefill_count
            and other.decode_count <= one.decode_count
            for other in every
        )
    ]
    assert sorted(steps) == sorted(least)


def test_too_few_nodes_of_each_kind_give_nothing() -> None:
    needs = Needs(0.01, 0.01)
    assert smallest_clusters(needs, 0.9, 4) == []
    assert len(needs.asked) == 4
    assert fewest_nodes([]) is None


def test_of_equally_small_clusters_the_one_that_attains_more_is_chosen() -> None:
    steps = [Sized(3, 1, 0.95, 0.1, 0.0), Sized(2, 2, 0.99, 0.1, 0.0), Sized(1, 4, 1.0, 0.1, 0.0)]
    assert fewest_nodes(steps) == steps[1]


@pytest.mark.slow
def test_a_cluster_is_tried_by_simulation() -> None:
    rows = family("burst", 1, 10.0, 12.0)
    attempt = try_cluster(Scenario(policy="headroom"), rows, 1)
    small, large = attempt(1, 1), attempt(3, 3)
    assert (large.prefill_count, large.decode_count, large.node_count) == (3, 3, 6)
    assert small.attained_frac < large.attained_frac
    assert small.ttft_p95_s > large.ttft_p95_s
