"""The life of requests through dispatcher, nodes and links, against hand computation."""

from __future__ import annotations

import pytest

from spillway.core.latency import step_s
from spillway.core.types import Slo
from spillway.sim.run import RunOutput, Simulation, run
from spillway.sim.scenario import Scenario
from spillway.wire.profile import load_profile
from spillway.workload.row import Row

PROFILE = load_profile(Scenario().profile)


def simulate(rows: list[Row], **changes: object) -> RunOutput:
    changes = {"policy": "least-loaded"} | changes
    return run(Scenario(**changes), rows, 1, checks=True)  # type: ignore[arg-type]


def test_the_prefill_path_costs_prefill_transfer_and_first_step() -> None:
    [record] = simulate([Row(0.25, 1500, 3)]).records
    parts = record.parts
    assert parts is not None
    kv_bytes = 1500 * PROFILE.kv_bytes_per_token
    assert (record.outcome, record.route, record.kv_bytes_moved) == (
        "finished",
        "prefill",
        kv_bytes,
    )
    assert parts.queue == 0.0
    assert parts.execute == pytest.approx(step_s(PROFILE, 0, 0, 1500, 0))
    assert parts.transfer == pytest.approx(0.002 + kv_bytes / 25e9)
    assert parts.admission == 0.0
    assert parts.first_step == pytest.approx(step_s(PROFILE, 1, 1500))
    gaps_s = [step_s(PROFILE, 1, 1501), step_s(PROFILE, 1, 1502)]
    assert record.gap_mean_s == pytest.approx(sum(gaps_s) / 2)
    assert record.gap_max_s == pytest.approx(gaps_s[1])
    assert record.finish_s == pytest.approx(0.25 + record.ttft_s + sum(gaps_s))


def test_a_deflected_request_runs_in_place_and_moves_no_kv() -> None:
    burst = [Row(0.01 * i, 6000, 20) for i in range(12)]
    output = simulate(burst, policy="headroom")
    deflected = [record for record in output.records if record.route == "deflected"]
    assert 0 < len(deflected) < 12
    for record in deflected:
        assert record.outcome == "finished"
        assert record.kv_bytes_moved == 0
        assert record.parts is not None
        assert record.parts.transfer == record.parts.first_step == 0.0
        assert record.parts.queue + record.parts.execute == pytest.approx(record.ttft_s)


def test_a_literal_chunk_schedule_reaches_the_node() -> None:
    burst = [Row(0.01 * i, 6000, 20) for i in range(12)]
    simulation = Simulation(Scenario(policy="kairos-paper"), burst, 1, checks=True)
    schedules = []
    for node_id in ("d0", "d1"):
        node = simulation.cluster.ports[node_id].node
        submit = node.submit_local

        def spy(job, now_s, submit=submit):  # type: ignore[no-untyped-def]
            schedules.append(job.chunks)
            return submit(job, now_s)

        node.submit_local = spy  # type: ignore[method-assign]
    output = simulation.run()
    assert output.counts["finished"] == 12
    assert schedules
    assert all(sum(size * steps for size, steps in chunks) >= 6000 for chunks in schedules)


def test_every_gap_of_every_request_is_in_the_histogram() -> None:
    rows = [Row(0.05 * i, 500 + 100 * (i % 7), 1 + i % 40) for i in range(60)]
    output = simulate(rows)
    assert output.gaps.count == sum(row.output_tokens - 1 for row in rows)
    assert sum(record.gaps for record in output.records) == output.gaps.count


def test_late_gaps_are_counted_against_each_request_s_own_class() -> None:
    rows = [Row(0.0, 500, 30, class_name="strict"), Row(0.0, 500, 30, class_name="lax")]
    slos = {"default": Slo(1.0, 0.06), "strict": Slo(1.0, 0.001), "lax": Slo(1.0, 1.0)}
    strict, lax = simulate(rows, slos=slos).records
    assert (strict.gaps, strict.gaps_late) == (29, 29)
    assert (lax.gaps, lax.gaps_late) == (29, 0)


def test_clients_that_leave_are_cancelled_wherever_they_stand() -> None:
    rows = [Row(0.05 * i, 3000, 200) for i in range(60)]
    output = simulate(rows, cancel_frac=1.0, patience_s=1.0, policy="headroom")
    outcomes = {record.outcome for record in output.records}
    assert output.counts["cancelled"] > 20
    assert outcomes <= {"cancelled", "finished"}
    cancelled = [record for record in output.records if record.outcome == "cancelled"]
    assert any(record.ttft_s is None for record in cancelled)
    assert any(record.ttft_s is not None for record in cancelled)


def test_an_order_delay_adds_to_each_leg() -> None:
    rows = [Row(0.0, 1500, 3)]
    [plain], [late] = simulate(rows).records, simulate(rows, order_delay_s=0.01).records
    assert late.ttft_s == pytest.approx(plain.ttft_s + 0.02)
    assert late.parts is not None
    assert late.parts.queue == pytest.approx(0.01)


def test_a_request_that_fits_no_node_fails_with_the_reason() -> None:
    [record] = simulate([Row(0.0, 5000, 10)], kv_capacity_tokens=2000).records
    assert record.outcome == "failed"
    assert "cannot hold request r0" in record.error


def test_idle_nodes_cost_nothing() -> None:
    rows = [Row(10.0 * i, 500, 10) for i in range(20)]
    small, large = simulate(rows, cluster="1p1d"), simulate(rows, cluster="16p16d")
    assert large.work.steps == small.work.steps
    assert large.work.events == small.work.events


def test_work_grows_with_requests_and_not_with_tokens() -> None:
    short = simulate([Row(1.0 * i, 500, 20) for i in range(30)])
    long = simulate([Row(100.0 * i, 500, 2000) for i in range(30)])
    assert long.work.steps > 50 * short.work.steps
    assert long.work.events == short.work.events
