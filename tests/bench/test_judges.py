"""The outside load generators: what they are asked to send, and how their answers are read."""

import json
from contextlib import contextmanager

import pytest


@pytest.fixture
def there(monkeypatch, tmp_path):
    """Judges as if installed, with a tokenizer."""
    import judges

    monkeypatch.setattr(judges, "environment", lambda name, python=(), s_max=0.0: tmp_path)
    monkeypatch.setattr(judges, "tokenizer", lambda: tmp_path)
    monkeypatch.setattr(judges, "pinned_version", lambda name: "1")
    return judges


SAID = {
    "inference-perf": (
        "summary_lifecycle_metrics.json",
        {
            "successes": {
                "count": 7,
                "latency": {
                    "time_to_first_token": {"mean": 0.05},
                    "request_latency": {"mean": 0.55},
                },
            },
            "failures": {"count": 2},
        },
    ),
    "aiperf": (
        "profile_export_aiperf.json",
        {
            "request_count": {"avg": 7.0},
            "time_to_first_token": {"avg": 50.0, "unit": "ms"},
            "request_latency": {"avg": 550.0, "unit": "ms"},
            "error_summary": [{"error_details": {"code": 503}, "count": 2}],
        },
    ),
}


@pytest.mark.parametrize("name", SAID)
def test_every_answer_is_read_in_seconds(there, name, tmp_path):
    file, said = SAID[name]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / file).write_text(json.dumps(said))
    assert there.JUDGES[name]().read(tmp_path) == pytest.approx((7, 2, 0.05, 0.5))


@pytest.mark.parametrize("name", SAID)
def test_every_judge_is_told_where_how_fast_and_how_long(there, name, tmp_path):
    load = there.Load("http://router", "m", 5.0, 40, 1024, 48)
    assert load.duration_s == 8.0
    words = there.JUDGES[name]().command(load, tmp_path)
    written = [path.read_text() for path in tmp_path.glob("*.yaml")]
    asked = " ".join([*words, *written])
    for word in ("http://router", "1024", "48", "5.0"):
        assert word in asked


def test_a_missing_answer_is_an_error(there, tmp_path):
    from mocks import BenchError

    with pytest.raises(BenchError, match="0 files called profile_export_aiperf"):
        there.aiperf().read(tmp_path)


def test_the_router_times_every_stream_of_every_engine(monkeypatch, tmp_path):
    import bench_judges

    from spillway.wire.config import load_config

    class Running:
        def poll(self):
            return None

    said = {}

    @contextmanager
    def command(name, arguments):
        said[name] = arguments
        yield Running()

    monkeypatch.setattr(bench_judges, "FOLDER", tmp_path)
    monkeypatch.setattr(bench_judges, "_command", command)
    health = {"prefill_nodes_usable": 2, "decode_nodes_deflectable": 2}
    monkeypatch.setattr(bench_judges, "get", lambda port, path: (200, json.dumps(health)))
    with bench_judges.cluster() as port:
        config = load_config(tmp_path / "router.yaml")
    assert config.router.given() == {"port": port, "gap_sample_every": 1}
    assert list(said) == ["p0", "p1", "d0", "d1", "router"]
    assert [node.spec.node_id for node in config.build_nodes()] == ["p0", "p1", "d0", "d1"]


def test_metrics_are_summed_over_their_labels(monkeypatch):
    import bench_judges

    text = b'# HELP a b\na_sum{route="x"} 1.5\na_sum{route="y"} 2\na_bucket{le="1"} 9\nb 3\n'
    monkeypatch.setattr(bench_judges, "get", lambda port, path: (200, text))
    assert bench_judges.metrics(1) == {"a_sum": 3.5, "b": 3.0}
