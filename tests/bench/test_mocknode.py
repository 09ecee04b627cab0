"""The programs that benchmarks trust: what a mock node answers, and what the load generator counts.

Behaviour only; nothing here looks at how long anything takes.
"""

import http.client
import importlib.util
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # the first test compiles two C programs
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler answers to `cc`"),
    pytest.mark.skipif(sys.platform != "linux", reason="the mocks are built on epoll"),
]

BENCH = Path(__file__).resolve().parents[2] / "bench"
PREFILL_BODY = {"prompt": "a", "max_tokens": 1, "stream": False}
PREFILL_BODY |= {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}}


@pytest.fixture(scope="module")
def mocks():
    spec = importlib.util.spec_from_file_location("mocks", BENCH / "mocks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def core(mocks):
    return mocks.two_cores().others


def ask(connection, method, path, body=None, headers=None):
    connection.request(method, path, json.dumps(body) if body else None, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def connect(port):
    return http.client.HTTPConnection("127.0.0.1", port, timeout=5)


def test_a_prefill_leg_gets_parameters_that_mark_a_decode_leg(mocks, core):
    with mocks.mock_node(core) as port:
        connection = connect(port)
        status, prefilled = ask(connection, "POST", "/v1/completions", PREFILL_BODY)
        params = json.loads(prefilled)["kv_transfer_params"]
        pulled = {"prompt": "a", "kv_transfer_params": params}
        ask(connection, "POST", "/v1/completions", pulled)
        ask(connection, "POST", "/v1/completions", {"prompt": "a"})
        counts = json.loads(ask(connection, "GET", "/counts")[1])
        connection.close()
    assert status == 200
    assert params["do_remote_prefill"] is True
    assert params["do_remote_decode"] is False
    assert (counts["prefill"], counts["pulled"], counts["local"]) == (1, 1, 1)


def test_a_stream_is_stamped_events_of_the_size_asked_for(mocks, core):
    with mocks.mock_node(core, chunks=5, spacing_us=100, chunk_bytes=235) as port:
        connection = connect(port)
        status, body = ask(connection, "POST", "/v1/completions", {"prompt": "a", "stream": True})
        connection.close()
    *events, done, rest = body.split(b"\n\n")
    stamps = [json.loads(event.removeprefix(b"data: "))["stamp"] for event in events]
    assert status == 200
    assert (done, rest) == (b"data: [DONE]", b"")
    assert [len(event) + 2 for event in events] == [235] * 5
    assert stamps == sorted(set(stamps))
    assert all(stamp[0] == "@" and stamp[1:].rstrip().isdigit() for stamp in stamps)


def test_the_connection_outlives_an_unknown_request(mocks, core):
    with mocks.mock_node(core) as port:
        connection = connect(port)
        answers = [
            ask(connection, "GET", "/metrics")[0],
            ask(connection, "PUT", "/v1/models", {"a": 1})[0],
            ask(connection, "GET", "/spillway/reports?router=r1")[0],  # as on a stock engine
            ask(connection, "GET", "/health")[0],
        ]
        models = json.loads(ask(connection, "GET", "/v1/models")[1])
        connection.close()
    assert answers == [404, 405, 404, 200]
    assert [model["id"] for model in models["data"]] == ["mock"]


def test_reports_count_up_and_name_the_last_dispatch(mocks, core):
    line = '{"seq":@SEQ,"dispatch_seen":{@SEEN}}'
    with mocks.mock_node(core, report=line, report_ms=1) as port:
        other = connect(port)
        ask(other, "POST", "/v1/completions", {"prompt": "a"}, {"x-spillway-dispatch": "r1:7"})
        connection = connect(port)
        connection.request("GET", "/spillway/reports?router=r1")
        answer = connection.getresponse()
        reports = [json.loads(answer.readline()) for _ in range(3)]
        connection.close()
        other.close()
    assert [report["seq"] for report in reports] == [1, 2, 3]
    assert [report["dispatch_seen"] for report in reports] == [{"r1": 7}] * 3


@pytest.mark.parametrize("mode", [{"rate": 400, "constant": True}, {"connections": 40}])
def test_the_load_generator_sees_every_event_of_every_stream(mocks, core, mode):
    with mocks.mock_node(core, chunks=6, spacing_us=200) as port:
        seen = mocks.load(core, port, stream=True, expect_events=6, duration_s=0.05, **mode)
    assert seen.failed == 0
    assert seen.unfinished == 0
    assert seen.completed == seen.sent >= 10
    assert seen.events == 6 * seen.completed
    assert 0 < seen.transit_us["p50"] <= seen.transit_us["p99"] <= seen.transit_us["max"]
    assert seen.ttft_us["count"] == seen.completed


def test_the_load_generator_counts_what_goes_wrong(mocks, core):
    with mocks.mock_node(core, chunks=3, spacing_us=100) as port:
        short = mocks.load(core, port, stream=True, expect_events=4, connections=2, duration_s=0.01)
        unknown = mocks.load(core, port, path="/x", header="x-a: b", rate=100, duration_s=0.4)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port_closed = server.getsockname()[1]
    refused = mocks.load(core, port_closed, connections=2, duration_s=0.01)
    assert short.short_streams == short.sent > 0
    assert unknown.completed == unknown.sent > 0  # the mock answers every POST alike
    assert refused.refused == 2
    assert refused.completed == refused.sent == 0


def test_a_bare_relay_changes_nothing(mocks, core):
    with (
        mocks.mock_node(core, chunks=6, spacing_us=200) as node_port,
        mocks.bare_relay(core, node_port) as (pid, port),
    ):
        flags = {"connections": 8, "stream": True, "expect_events": 6, "duration_s": 0.03}
        seen = mocks.load(core, port, **flags)
        used_ns = mocks.cpu_ns(pid)
    assert seen.failed == seen.unfinished == 0
    assert seen.completed == seen.sent >= 8
    assert used_ns > 0


def test_streams_stay_open_for_as_long_as_they_are_held(mocks, core):
    with mocks.mock_node(core, chunks=100, spacing_us=1e6) as port:
        flags = {"connections": 50, "stream": True, "duration_s": 1, "drain_s": 0.01}
        with mocks.load_running(core, port, **flags) as process:
            first_line = process.stdout.readline()
            held = mocks.load_result(process)
    assert first_line == "open 50\n"
    assert held.unfinished == 50
    assert held.failed == 0


@pytest.mark.parametrize("flags", [{}, {"port": 1}, {"port": "x", "rate": 1}])
def test_the_load_generator_refuses_flags_without_sense(mocks, core, flags):
    with (
        mocks.stopped_at_end(
            mocks.start([str(mocks.compiled("loadgen")), *mocks.as_flags(flags)], core)
        ) as process,
        pytest.raises(mocks.BenchError, match="exit code 2"),
    ):
        mocks.load_result(process)
