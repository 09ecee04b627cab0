"""What the simulators are given: the same requests, each in the format that it reads."""

import json

import pytest

from spillway.workload.row import Row
from spillway.workload.traces import read_trace

ROWS = [Row(0.5, 1000, 20), Row(1.25, 512, 3), Row(2.0, 513, 7)]


@pytest.fixture
def peers_there(monkeypatch, tmp_path):
    import simulators

    monkeypatch.setattr(simulators, "environment", lambda name: tmp_path)
    return simulators


@pytest.mark.parametrize("name", ["spillway", "aisimulate", "sr_sim"])
def test_every_simulator_is_given_the_same_requests(peers_there, name, tmp_path):
    trace = tmp_path / "rows.trace"
    getattr(peers_there, name)().write(trace, ROWS)
    if name == "sr_sim":  # its times are plain seconds, which the Azure format of others is not
        lines = trace.read_text().splitlines()
        assert lines[0] == "TIMESTAMP,ContextTokens,GeneratedTokens"
        assert [tuple(map(float, line.split(","))) for line in lines[1:]] == [
            row[:3]
            for row in ((one.arrival_s, one.prompt_tokens, one.output_tokens) for one in ROWS)
        ]
        return
    rows = read_trace(trace, spread_ticks=False).rows
    first_s = rows[0].arrival_s - ROWS[0].arrival_s
    assert [(row.arrival_s - first_s, row.prompt_tokens, row.output_tokens) for row in rows] == [
        (row.arrival_s, row.prompt_tokens, row.output_tokens) for row in ROWS
    ]


def test_no_two_prompts_of_a_mooncake_trace_share_a_block(peers_there, tmp_path):
    trace = tmp_path / "rows.trace"
    peers_there.aisimulate().write(trace, ROWS)
    blocks = [json.loads(line)["hash_ids"] for line in trace.read_text().splitlines()]
    assert [len(one) for one in blocks] == [2, 1, 2]
    assert len({block for one in blocks for block in one}) == 5


def test_means_are_over_all_requests_and_the_same_for_the_same_rows():
    import bench_sim
    from simulators import spillway

    rows = bench_sim.requests(50)
    assert rows == bench_sim.requests(50)
    assert rows == sorted(rows, key=lambda row: row.arrival_s)
    means = spillway().means(rows, 2)
    assert means.finished == 50
    assert 0 < means.ttft_s < means.e2e_s
    assert means == spillway().means(rows, 2)


def test_a_command_is_charged_for_what_it_did_and_its_failure_is_quoted():
    import sys

    from mocks import BenchError
    from process import run_to_end

    cost = run_to_end([sys.executable, "-c", "b = bytearray(60_000_000); sum(range(2_000_000))"])
    assert cost.cpu_s > 0
    assert cost.peak_bytes > 60_000_000
    with pytest.raises(BenchError, match="failed: no such thing"):
        run_to_end([sys.executable, "-c", "import sys; sys.exit('no such thing')"])
    with pytest.raises(BenchError, match="took over 1 s"):
        run_to_end([sys.executable, "-c", "import threading; threading.Event().wait(9)"], s_max=1)
