"""How many nodes of each kind are enough: the smallest clusters that meet a target.

More nodes never hurt in truth; a simulated run of finite length may contradict that by a hair. The
search takes it for granted, walks the staircase between what is enough and what is not, and so
needs about as many runs as there are steps in it rather than one for every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.wire.results import summarise
from spillway.workload.row import Row


class Sized(NamedTuple):
    """A cluster that was tried, and what it attained: the share that met both targets."""

    prefill_count: int
    decode_count: int
    attained_frac: float
    ttft_p95_s: float
    deflected_frac: float

    @property
    def node_count(self) -> int:
        """Return how many nodes it has."""
        return self.prefill_count + self.decode_count


Try = Callable[[int, int], Sized]


def try_cluster(scenario: Scenario, rows: Sequence[Row], seed: int) -> Try:
    """Return the function that runs `rows` on a cluster of so many prefill and decode nodes."""

    def tried(prefill_count: int, decode_count: int) -> Sized:
        sized = replace(scenario, cluster=f"{prefill_count}p{decode_count}d")
        output = run(sized, rows, seed)
        figures = summarise(
            policy=scenario.policy, records=output.records, gaps=output.gaps, wall_s=0.0
        )
        return Sized(
            prefill_count,
            decode_count,
            figures.attainment.joint_99,
            figures.ttft_s.p95,
            figures.deflected_frac,
        )

    return tried


def smallest_clusters(attempt: Try, wanted_frac: float, nodes_max: int) -> list[Sized]:
    """Return, for each number of decode nodes that gains something, the fewest prefill nodes.

    Decode nodes ascend and prefill nodes descend strictly, so no entry is needless; empty when
    `nodes_max` of each kind are not enough. At most 2 x nodes_max runs.
    """
    steps: list[Sized] = []
    prefill_count = nodes_max
    for decode_count in range(1, nodes_max + 1):
        held: Sized | None = None
        while prefill_count >= 1:
            found = attempt(prefill_count, decode_count)
            if found.attained_frac < wanted_frac:
                break
            held, prefill_count = found, prefill_count - 1
        if held is not None:
            steps.append(held)
        if prefill_count < 1:
            break
    return steps


def fewest_nodes(steps: Sequence[Sized]) -> Sized | None:
    """Return the cluster with the fewest nodes; of equals the one that attains most."""
    return min(steps, key=lambda one: (one.node_count, -one.attained_frac), default=None)
