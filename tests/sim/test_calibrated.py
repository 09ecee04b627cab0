"""What learning from steps is worth: slower nodes than believed still keep their streams."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spillway.sim.run import RunOutput, Simulation
from spillway.sim.scenario import Scenario
from spillway.workload.synthetic import family

SLOWER = Scenario(bias_frac=1.15)


def late_frac(output: RunOutput) -> float:
    gaps = sum(record.gaps for record in output.records)
    return sum(record.gaps_late for record in output.records) / gaps


def simulated(scenario: Scenario) -> Simulation:
    return Simulation(scenario, family("burst", 5, 15.0, 14.0), 5)


@pytest.mark.slow
def test_a_profile_15_percent_too_fast_costs_few_tokens_their_deadline() -> None:
    simulation = simulated(SLOWER)
    output = simulation.run()
    deflected = sum(record.route == "deflected" for record in output.records)
    assert deflected > 0.1 * len(output.records)
    assert late_frac(output) <= 0.005
    for node in simulation.dispatcher.ledger.nodes.values():
        configured_s = configured_full_step_s(simulation, node.spec.node_id)
        assert 1.08 * configured_s < node.view.spec.full_step_s < 1.25 * configured_s


@pytest.mark.slow
def test_without_learning_more_tokens_are_late_and_the_router_believes_the_profile() -> None:
    simulation = simulated(replace(SLOWER, calibrated=False))
    output = simulation.run()
    assert late_frac(output) > 0.005
    for node in simulation.dispatcher.ledger.nodes.values():
        assert node.view.spec.full_step_s == configured_full_step_s(simulation, node.spec.node_id)


@pytest.mark.slow
def test_a_node_that_becomes_a_stranger_to_its_profile_gets_nothing_until_it_is_itself_again() -> (
    None
):
    simulation = simulated(replace(SLOWER, bias_frac=6.0))
    output = simulation.run()
    first_s = min(record.arrival_s for record in output.records)
    late_arrivals = [one for one in output.records if one.arrival_s > first_s + 5.0]
    assert all(one.route == "prefill" for one in late_arrivals)
    nodes = simulation.dispatcher.ledger.nodes.values()
    assert any(node.view.drifting for node in nodes)


def configured_full_step_s(simulation: Simulation, node_id: str) -> float:
    return next(spec.full_step_s for spec in simulation.specs if spec.node_id == node_id)
