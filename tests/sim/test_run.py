"""Runs: deterministic to the byte, in and across processes."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

import spillway
from spillway.core.events import LogDecision
from spillway.sim.run import Simulation, run
from spillway.sim.scenario import Scenario
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row
from spillway.workload.synthetic import family

HELD_BYTES_MAX = 16  # of a request that has ended; what was learned of output lengths is bounded

NOISY = Scenario(
    policy="headroom", noise_frac=0.2, report_loss_frac=0.1, cancel_frac=0.1, order_delay_s=0.001
)

DIGEST = """
from hashlib import sha256
import msgspec
from spillway.sim.run import run
from spillway.sim.scenario import swarm
for seed in range(3):
    scenario, rows = swarm(seed)
    print(sha256(msgspec.json.encode(run(scenario, rows, seed).records)).hexdigest())
"""


def digest(seed: int) -> str:
    rows = family("burst", 1, 6.0)
    return sha256(msgspec.json.encode(run(NOISY, rows, seed).records)).hexdigest()


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_records_are_told_as_requests_end_and_need_not_be_kept() -> None:
    rows = family("burst", 1, 6.0)
    told: dict[int, RequestRecord] = {}
    output = run(NOISY, rows, 1, on_record=told.__setitem__, keep_records=False)
    assert output.records == []
    assert [told[at] for at in range(len(rows))] == run(NOISY, rows, 1).records
    assert list(told) != sorted(told)


@pytest.mark.slow
def test_a_request_that_has_ended_leaves_next_to_nothing_behind() -> None:
    """Unless its record is kept: that is some 600 bytes."""

    def held_bytes(count: int) -> float:
        rows = [Row(0.1 * at, 500, 20) for at in range(count)]
        gc.collect()
        tracemalloc.start()
        try:
            simulation = Simulation(Scenario(), rows, 1, keep_records=False)
            simulation.run()
            gc.collect()
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    held_bytes(100)  # fills caches
    assert held_bytes(800) - held_bytes(400) < HELD_BYTES_MAX * 400


@pytest.mark.slow
def test_two_processes_with_different_hash_seeds_give_the_same_bytes() -> None:
    source = str(Path(spillway.__file__).parent.parent)
    outputs = []
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        process = subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        outputs.append(process.stdout)
    assert len(outputs[0].split()) == 3
    assert outputs[0] == outputs[1]


def test_checks_change_nothing() -> None:
    rows = family("burst", 2, 4.0)
    assert run(NOISY, rows, 1).records == run(NOISY, rows, 1, checks=True).records


def test_no_rows_are_a_run_too() -> None:
    output = run(Scenario(), [], 1, checks=True)
    assert (output.records, output.work.events, output.gaps.count) == ([], 0, 0)


def test_records_come_in_the_order_of_the_rows() -> None:
    rows = [Row(0.0, 8000, 400), Row(0.1, 10, 1), Row(0.2, 10, 1)]
    records = run(Scenario(), rows, 1).records
    assert [record.request_id for record in records] == ["r0", "r1", "r2"]
    assert records[0].finish_s > records[1].finish_s


def test_decisions_can_be_listened_to() -> None:
    heard: list[object] = []
    rows = [Row(0.1 * i, 500, 5) for i in range(5)]
    run(Scenario(), rows, 1, on_decision=heard.append, record_views=True)
    assert [log.request.request_id for log in heard] == [f"r{i}" for i in range(5)]
    assert all(log.cluster is not None for log in heard)


def test_a_biased_world_is_slower_than_the_profile_says() -> None:
    rows = [Row(0.0, 2000, 50)]
    [honest] = run(Scenario(), rows, 1).records
    [slow] = run(Scenario(bias_frac=1.5), rows, 1).records
    assert honest.parts is not None
    assert slow.parts is not None
    assert slow.parts.execute == pytest.approx(1.5 * honest.parts.execute)
    assert slow.gap_mean_s == pytest.approx(1.5 * honest.gap_mean_s)


@pytest.mark.parametrize("static", ["round-robin", "least-loaded", "power-of-two"])
def test_a_shadow_changes_no_byte_of_a_run(static: str) -> None:
    rows = family("burst", 3, 6.0)
    scenario = replace(NOISY, policy=static)
    kept: dict[str, list[LogDecision]] = {}
    records = []
    for shadow in ("", "headroom", "kairos-paper"):
        logs = kept.setdefault(shadow, [])
        watched = replace(scenario, shadow=shadow)
        output = run(watched, rows, 3, checks=True, on_decision=logs.append)
        records.append(msgspec.json.encode(output.records))
    assert records == [records[0]] * 3
    alone = [log.decision for log in kept[""]]
    for shadow in ("headroom", "kairos-paper"):
        decided = [log.decision for log in kept[shadow]]
        assert [one._replace(shadow=None) for one in decided] == alone
        assert {one.shadow.policy for one in decided if one.shadow is not None} == {shadow}
