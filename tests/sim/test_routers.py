"""Several routers in front of the same simulated nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spillway.core.errors import ConfigError
from spillway.sim.run import RunOutput, Simulation, run
from spillway.sim.scenario import Scenario
from spillway.workload.row import Row
from spillway.workload.synthetic import family

SHARED = Scenario(cluster="2p2d", routers=3, report_period_s=0.02)


def burst(seed: int = 3) -> list[Row]:
    return family("burst", seed, 12.0, 20.0)


def tokens_per_s(output: RunOutput) -> float:
    records = [record for record in output.records if record.outcome == "finished"]
    return sum(one.prompt_tokens + one.output_tokens for one in records) / output.end_s


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_three_routers_break_no_law_no_budget_and_lose_no_throughput(seed: int) -> None:
    rows = burst(seed)
    shared = run(SHARED, rows, seed, checks=True)  # every invariant, of each router's books
    alone = run(replace(SHARED, routers=1), rows, seed)
    assert shared.counts["finished"] == len(rows)
    assert shared.work.declined > 0
    assert sum(record.gaps_late for record in shared.records) == 0
    assert tokens_per_s(shared) >= 0.95 * tokens_per_s(alone)


def test_every_router_gets_its_share_and_their_ledgers_agree_at_the_end() -> None:
    simulation = Simulation(SHARED, burst(), 3)
    simulation.run()
    routers = simulation.cluster.routers
    assert routers is not None
    assert len(routers.each) == 3
    assert min(router.arrived for router in routers.each) > 0.2 * len(simulation.rows)
    assert all(node.outstanding == 0 for one in routers.each for node in one.ledger.nodes.values())
    for node_id, port in simulation.cluster.ports.items():
        state = port.node.state(simulation.kernel.now_s)
        views = []
        for router in routers.each:
            router.ledger.nodes[node_id].report(state)
            view = router.ledger.nodes[node_id].view
            views.append((view.backlog_tokens, view.decode_seqs, view.kv_used_tokens))
        assert set(views) == {(0, 0, 0)}


def test_a_ledger_counts_what_other_routers_put_on_a_node() -> None:
    rows = [Row(0.0, 8000, 50), Row(0.0, 8000, 50), Row(0.05, 100, 5), Row(0.051, 100, 5)]
    simulation = Simulation(replace(SHARED, cluster="1p1d", policy="colocated"), rows, 1)
    kernel, cluster = simulation.kernel, simulation.cluster
    assert cluster.routers is not None
    seen = []

    def look(_: object) -> None:
        now_s = kernel.now_s
        cluster.reports.deliver(cluster.ports.values(), now_s)
        for router in cluster.routers.each:  # type: ignore[union-attr]
            own = sum(node.outstanding for node in router.ledger.nodes.values())
            all_prompts = sum(node.view.backlog_prompts for node in router.ledger.nodes.values())
            seen.append((own, all_prompts))

    kernel.at(0.045, look, None)
    simulation.run()
    assert sum(own for own, _ in seen) == 2
    assert all(prompts == 2 for _, prompts in seen)


def test_a_run_with_several_routers_is_the_same_again() -> None:
    assert run(SHARED, burst(), 5).records == run(SHARED, burst(), 5).records


def test_the_number_of_routers_is_checked() -> None:
    with pytest.raises(ConfigError, match="routers"):
        Scenario(routers=0)
