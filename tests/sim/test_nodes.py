"""Nodes that differ from the rest, as text and in a run."""

from __future__ import annotations

import pytest

from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.types import ChunkMode
from spillway.sim.nodes import NodeChange, parse_node_change
from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.wire.profile import load_profile, load_profile_file
from spillway.workload.row import Row

H100 = "llama-3.1-8b-h100"


def test_a_node_is_named_with_what_it_has_of_its_own() -> None:
    text = f"d1=profile:{H100},seqs_max:64,bias:1.2,chunk_mode:static,link:100gbps"
    assert parse_node_change(text) == (
        "d1",
        NodeChange(
            profile=H100,
            seqs_max=64,
            bias_frac=1.2,
            chunk_mode=ChunkMode.STATIC,
            link_bytes_per_s=10e9,
            link_base_s=0.001,
        ),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("d1", "not of the form d1="),
        ("d1=", "not of the form d1="),
        ("=seqs_max:1", "not of the form d1="),
        ("d1=seqs_max", "'seqs_max' is not of the form key:value"),
        ("d1=seq_max:4", "did you mean 'seqs_max'"),
        ("d1=seqs_max:few", "seqs_max is 'few'; a int is needed"),
        ("d1=bias:nan", "bias_frac is 'nan'; it must be finite"),
        ("d1=chunk_mode:clever", "engine, static, unknown"),
        ("d1=link:pigeon", "link 'pigeon' is unknown"),
    ],
)
def test_what_is_wrong_with_a_node_is_said_in_one_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as caught:
        parse_node_change(text)
    assert said in str(caught.value)


def test_each_node_has_its_own_spec_and_the_others_the_scenario_s() -> None:
    nodes = {"d1": NodeChange(profile=H100, link_bytes_per_s=1e9), "p0": NodeChange(bias_frac=1.5)}
    scenario = Scenario(nodes=nodes, seqs_max=32, bias_frac=1.1)
    p0, p1, d0, d1 = scenario.specs()
    assert (d1.profile, d0.profile) == (load_profile(H100), load_profile(scenario.profile))
    assert (d1.link_bytes_per_s, d0.link_bytes_per_s) == (1e9, 25e9)
    assert d1.kv_capacity_tokens == load_profile_file(H100).kv_capacity_tokens
    assert {spec.seqs_max for spec in (p0, p1, d0, d1)} == {32}
    assert [scenario.bias_of(spec.node_id) for spec in (p0, p1)] == [1.5, 1.1]


def test_a_node_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no node 'd2' in a cluster 2p2d"):
        Scenario(nodes={"d2": NodeChange()}).specs()


def test_a_faster_node_takes_more_of_the_work() -> None:
    rows = [Row(0.05 * index, 2000, 10) for index in range(100)]
    scenario = Scenario(
        cluster="2p1d", policy="least-loaded", nodes={"p1": NodeChange(profile=H100)}
    )
    chosen = []
    run(scenario, rows, 1, checks=True, on_decision=lambda log: chosen.append(log.decision))
    fast = sum(decision.prefill_node_id == "p1" for decision in chosen)
    assert fast > 60


# --- drift -----------------------------------------------------------------------------------


def executes_s(drift_frac: float, **changes: object) -> list[float]:
    """Prefill times of equal prompts, one every ten seconds."""
    rows = [Row(10.0 * index, 1000, 2) for index in range(11)]
    scenario = Scenario(policy="least-loaded", drift_frac=drift_frac, **changes)  # type: ignore[arg-type]
    output = run(scenario, rows, 1, checks=True)
    return [record.parts.execute for record in output.records if record.parts is not None]


def test_steps_grow_slower_evenly_over_the_run() -> None:
    plain_s = step_s(load_profile(Scenario().profile), 0, 0, 1000, 0)
    factors = [one / plain_s for one in executes_s(0.5)]
    assert factors[0] == pytest.approx(1.0)
    assert factors[5] == pytest.approx(1.25, abs=0.01)
    assert factors[10] == pytest.approx(1.5)
    assert factors == sorted(factors)


def test_drift_multiplies_what_nodes_differ_by_anyway() -> None:
    assert executes_s(0.5, bias_frac=1.2)[-1] == pytest.approx(1.2 * executes_s(0.5)[-1])


@pytest.mark.parametrize("drift_frac", [-1.0, float("nan"), float("inf")])
def test_a_drift_without_sense_is_refused(drift_frac: float) -> None:
    with pytest.raises(ConfigError, match="drift_frac"):
        Scenario(drift_frac=drift_frac)
