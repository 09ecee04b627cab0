"""What goes wrong, and what becomes of the requests."""

from __future__ import annotations

from math import inf

import pytest

from spillway.core.errors import ConfigError, InvariantViolation
from spillway.sim.faults import Fault, NodeDies, NodeSlows
from spillway.sim.run import RunOutput, run
from spillway.sim.scenario import Scenario
from spillway.workload.row import Row

ONE = [Row(0.0, 4000, 50)]


def outcome(rows: list[Row], *faults: Fault, **changes: object) -> RunOutput:
    scenario = Scenario(policy="least-loaded", faults=faults, **changes)  # type: ignore[arg-type]
    return run(scenario, rows, 1, checks=True)


def test_a_prompt_on_a_dying_prefill_node_moves_to_another() -> None:
    undisturbed = outcome(ONE).records[0]
    disturbed = outcome(ONE, NodeDies(node_id="p0", at_s=0.05)).records[0]
    assert disturbed.outcome == "finished"
    assert disturbed.ttft_s == pytest.approx(undisturbed.ttft_s + 0.05)


def test_kv_on_its_way_to_a_dying_decode_node_goes_to_another_without_a_second_prefill() -> None:
    plain = outcome(ONE, link_bytes_per_s=1e9)
    record = plain.records[0]
    assert record.parts is not None
    prefilled_s = record.parts.queue + record.parts.execute
    fault = NodeDies(node_id="d0", at_s=prefilled_s + 0.1)
    moved = outcome(ONE, fault, link_bytes_per_s=1e9)
    assert moved.records[0].outcome == "finished"
    assert moved.records[0].kv_bytes_moved == 2 * record.kv_bytes_moved
    assert moved.records[0].parts is not None
    assert moved.records[0].parts.execute == pytest.approx(record.parts.execute)


def test_kv_lost_with_its_prefill_node_is_computed_again() -> None:
    plain = outcome(ONE, link_bytes_per_s=1e9).records[0]
    assert plain.parts is not None
    fault = NodeDies(node_id="p0", at_s=plain.parts.queue + plain.parts.execute + 0.1)
    output = outcome(ONE, fault, link_bytes_per_s=1e9)
    assert output.records[0].outcome == "finished"
    assert output.records[0].ttft_s > 2 * plain.parts.execute
    assert output.work.transfers == 2


def test_a_stream_on_a_dying_node_fails_and_keeps_its_figures() -> None:
    plain = outcome(ONE).records[0]
    record = outcome(ONE, NodeDies(node_id="d0", at_s=plain.ttft_s + 0.2)).records[0]
    assert (record.outcome, record.ttft_s) == ("failed", plain.ttft_s)
    assert 1 < record.output_tokens < 50
    assert record.gaps == record.output_tokens - 1
    assert "d0 died" in record.error


def test_without_any_node_left_requests_are_rejected_until_one_is_back() -> None:
    rows = [Row(1.0, 100, 5), Row(5.0, 100, 5)]
    faults = [NodeDies(node_id=node, at_s=0.5, back_s=3.0) for node in ("p0", "p1", "d0", "d1")]
    records = outcome(rows, *faults).records
    assert [record.outcome for record in records] == ["rejected", "finished"]


def test_a_dead_node_gets_nothing_and_a_revived_one_does() -> None:
    rows = [Row(0.2 * i, 500, 5) for i in range(40)]
    output = outcome(rows, NodeDies(node_id="p1", at_s=0.1, back_s=4.0))
    assert output.counts["finished"] == 40


def test_a_slow_node_slows_its_requests_for_its_time_only() -> None:
    rows = [Row(0.0, 2000, 5), Row(10.0, 2000, 5)]
    slows = NodeSlows(node_id="p0", at_s=0.0, scale_frac=4.0, until_s=5.0)
    plain = outcome(rows, cluster="1p1d").records
    slow = outcome(rows, slows, cluster="1p1d").records
    assert plain[0].parts is not None
    assert slow[0].parts is not None
    assert slow[0].parts.execute == pytest.approx(4 * plain[0].parts.execute)
    assert slow[1].ttft_s == pytest.approx(plain[1].ttft_s)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NodeDies(node_id="p0", at_s=-1.0),
        lambda: NodeDies(node_id="p0", at_s=1.0, back_s=1.0),
        lambda: NodeSlows(node_id="p0", at_s=inf, scale_frac=2.0),
        lambda: NodeSlows(node_id="p0", at_s=0.0, scale_frac=0.0),
    ],
)
def test_a_fault_without_sense_is_refused(make: object) -> None:
    with pytest.raises(ConfigError, match="p0"):
        make()  # type: ignore[operator]


def test_a_fault_of_an_unknown_node_is_our_bug() -> None:
    with pytest.raises(InvariantViolation, match="no such node"):
        outcome(ONE, NodeDies(node_id="p9", at_s=0.0))
