"""Each check notices the damage that it is there for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from spillway.core.errors import InvariantViolation
from spillway.core.lifecycle import State
from spillway.sim.checks import check_cluster, check_end, check_flight
from spillway.sim.flights import Flight
from spillway.sim.run import Simulation
from spillway.sim.scenario import Scenario
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row

ROWS = [Row(0.0, 800, 20), Row(0.1, 900, 20), Row(0.2, 4000, 20)]


def under_way(until_s: float = 0.3) -> Simulation:
    simulation = Simulation(Scenario(policy="least-loaded"), ROWS, 1)
    simulation.kernel.at(0.0, simulation._arrive, 0)
    simulation.kernel.run(until_s=until_s)
    return simulation


def damage_counts(simulation: Simulation) -> None:
    simulation.dispatcher.counts[State.FINISHED] += 1


def damage_flights(simulation: Simulation) -> None:
    simulation.cluster.flights.popitem()


def damage_kv(simulation: Simulation) -> None:
    simulation.cluster.ports["d0"].node.kv.take(1)


def damage_route(simulation: Simulation) -> None:
    flight = next(iter(simulation.cluster.flights.values()))
    flight.moving, flight.route = True, "deflected"


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_counts, "INV-1"),
        (damage_flights, "INV-1"),
        (damage_kv, "INV-12 on d0"),
        (damage_route, "INV-10"),
    ],
)
def test_a_cluster_under_way_is_checked(damage: Callable[[Simulation], None], text: str) -> None:
    simulation = under_way()
    check_cluster(simulation.cluster)
    damage(simulation)
    with pytest.raises(InvariantViolation, match=text):
        check_cluster(simulation.cluster)


def one_flight() -> tuple[Flight, RequestRecord]:
    simulation = Simulation(Scenario(policy="least-loaded"), ROWS[:1], 1, checks=True)
    flights: list[Flight] = []
    keep = simulation.cluster._done
    simulation.cluster._done = lambda flight: (flights.append(flight), keep(flight))
    [record] = simulation.run().records
    return flights[0], record


def test_a_finished_flight_is_checked() -> None:
    flight, record = one_flight()
    check_flight(flight, record)
    assert record.parts is not None
    assert record.ttft_s is not None
    for damaged, text in (
        (replace(record, arrival_s=5.0), "INV-11: r0 has its arrival at 5.0 s"),
        (replace(record, finish_s=0.001), "INV-11"),
        (replace(record, ttft_s=record.ttft_s + 0.1), "do not make its TTFT"),
        (replace(record, output_tokens=19), "19 of 20 tokens"),
        (replace(record, route="deflected"), "INV-10"),
    ):
        with pytest.raises(InvariantViolation, match=text):
            check_flight(flight, damaged)


def test_the_end_of_a_run_is_checked() -> None:
    simulation = Simulation(Scenario(policy="least-loaded"), ROWS, 1)
    records = simulation.run().records
    cluster, gaps = simulation.cluster, simulation.gaps
    check_end(cluster, records, gaps)
    with pytest.raises(InvariantViolation, match="INV-1"):
        check_end(cluster, records[1:], gaps)
    with pytest.raises(InvariantViolation, match="bytes of KV"):
        check_end(cluster, [replace(records[0], kv_bytes_moved=0), *records[1:]], gaps)
    gaps.add(0.01)
    with pytest.raises(InvariantViolation, match="token gaps"):
        check_end(cluster, records, gaps)


def test_a_run_that_is_cut_short_is_noticed() -> None:
    simulation = under_way()
    with pytest.raises(InvariantViolation, match="never ended"):
        check_end(simulation.cluster, [], simulation.gaps)


def test_a_violation_shows_the_last_facts() -> None:
    simulation = Simulation(Scenario(policy="least-loaded"), ROWS, 1, checks=True)
    simulation.kernel.at(0.25, lambda _: damage_kv(simulation))
    with pytest.raises(InvariantViolation, match=r"(?s)INV-12.*last facts:.*RequestArrived"):
        simulation.run()
