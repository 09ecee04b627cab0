"""A tape: every fact that a simulated run told its dispatcher, with the orders that came back.

`python -m tape` with this folder and `src` on the path prints a digest of several, so that two
processes can be compared.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from typing import NamedTuple
from unittest.mock import patch

from spillway.core.dispatcher import Dispatcher
from spillway.core.events import Action, Event
from spillway.sim.faults import NodeDies
from spillway.sim.run import RunOutput, Simulation
from spillway.sim.scenario import DEFAULT_CLASS, Scenario
from spillway.workload.row import Row
from spillway.workload.synthetic import family

SEED = 11
DIGESTED = ("threshold", "kairos-paper", "headroom")  # together they give every kind of order


class Heard(NamedTuple):
    """One fact, when it was told, and what it led to."""

    now_s: float
    event: Event
    orders: tuple[Action, ...]


class Recorder(Dispatcher):
    """A dispatcher that keeps its whole tape."""

    def handle(self, event: Event, now_s: float) -> list[Action]:
        orders = super().handle(event, now_s)
        self.__dict__.setdefault("tape", []).append(Heard(now_s, event, tuple(orders)))
        return orders


class Tape(NamedTuple):
    """A recorded run, and the dispatcher that decided it."""

    dispatcher: Dispatcher
    heard: list[Heard]
    output: RunOutput


def scenario(policy: str) -> Scenario:
    """Two and two nodes; one of each dies and comes back, clients leave, reports get lost."""
    return Scenario(
        cluster="2p2d",
        policy=policy,
        noise_frac=0.05,
        report_delay_s=0.03,
        report_loss_frac=0.1,
        cancel_frac=0.1,
        faults=(
            NodeDies(node_id="p1", at_s=1.5, back_s=3.0),
            NodeDies(node_id="d0", at_s=2.5, back_s=4.0),
        ),
    )


def rows() -> list[Row]:
    """A burst of heavy-tailed prompts with short answers, all of one class."""
    burst = family("burst", SEED, duration_s=6.0, rate_per_s=18.0)
    return [
        row._replace(output_tokens=min(row.output_tokens, 40), class_name=DEFAULT_CLASS)
        for row in burst
    ]


@cache
def record(policy: str) -> Tape:
    """Return the tape of one run of `policy`, which nobody may change."""
    with patch("spillway.sim.run.Dispatcher", Recorder):
        simulation = Simulation(scenario(policy), rows(), SEED, record_views=True)
    output = simulation.run()
    return Tape(simulation.dispatcher, vars(simulation.dispatcher)["tape"], output)


def digest() -> str:
    """Return a digest of every order and every record of a run of three policies."""
    hashed = sha256()
    for policy in DIGESTED:
        tape = record(policy)
        for heard in tape.heard:
            hashed.update(repr((heard.now_s, heard.event, heard.orders)).encode())
        for one in tape.output.records:
            hashed.update(repr(one).encode())
    return hashed.hexdigest()


if __name__ == "__main__":
    print(digest())
