"""Scenarios: what is refused, what the nodes become, and the random ones."""

from __future__ import annotations

import pytest

from spillway.core.errors import ConfigError
from spillway.core.types import Role, Slo
from spillway.sim.scenario import Scenario, parse_cluster, swarm
from spillway.wire.profile import load_profile_file


def test_a_cluster_is_written_as_two_counts() -> None:
    assert parse_cluster("2p2d") == (2, 2)
    assert parse_cluster("1p13d") == (1, 13)


@pytest.mark.parametrize("text", ["", "2p", "2d2p", "0p1d", "1p0d", "-1p2d", "2P2D", "99999p1d"])
def test_a_cluster_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="cluster"):
        parse_cluster(text)


def test_nodes_take_the_profile_and_its_kv_unless_told_otherwise() -> None:
    specs = Scenario(cluster="1p2d").specs()
    assert [(spec.node_id, spec.role) for spec in specs] == [
        ("p0", Role.PREFILL),
        ("d0", Role.DECODE),
        ("d1", Role.DECODE),
    ]
    file = load_profile_file(Scenario().profile)
    assert {spec.kv_capacity_tokens for spec in specs} == {file.kv_capacity_tokens}
    assert specs[0].profile == file.latency()
    assert Scenario(kv_capacity_tokens=777).specs()[0].kv_capacity_tokens == 777


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cluster": "two"}, "2p2d"),
        ({"slos": {"chat": Slo(1.0, 0.1)}}, "default"),
        ({"cancel_frac": 1.5}, "cancel_frac is 1.5"),
        ({"patience_s": 0.0}, "patience_s is 0.0"),
        ({"order_delay_s": -1.0}, "order_delay_s is -1.0"),
    ],
)
def test_a_scenario_without_sense_is_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Scenario(**changes)  # type: ignore[arg-type]


def test_a_seed_draws_one_scenario() -> None:
    assert swarm(4) == swarm(4)
    assert swarm(4) != swarm(5)
    assert len({swarm(seed)[0].policy for seed in range(30)}) >= 4
    assert any(swarm(seed)[0].faults for seed in range(10))
