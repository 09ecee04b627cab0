"""One page out of several workers': nothing is lost, and nothing is counted twice."""

from __future__ import annotations

import json

from spillway.router.workerpages import (
    merge_decisions,
    merge_figures,
    merge_health,
    merge_metrics,
    merge_nodes,
)

PAGE = b"""# HELP a_total All of a.
# TYPE a_total counter
a_total{node="d0"} %d
# HELP b Now.
# TYPE b gauge
b %d
# HELP h_seconds Times.
# TYPE h_seconds histogram
h_seconds_bucket{le="1"} 3
h_seconds_sum 0.5
h_seconds_count 3
"""


def test_every_sample_keeps_its_value_and_gets_its_worker() -> None:
    page = merge_metrics({1: PAGE % (5, 6), 0: PAGE % (3, 4)}, [0, 1], 2).decode()
    lines = page.splitlines()
    at = lines.index("# HELP a_total All of a.")
    assert lines[at : at + 4] == [
        "# HELP a_total All of a.",
        "# TYPE a_total counter",
        'a_total{worker="0",node="d0"} 3',
        'a_total{worker="1",node="d0"} 5',
    ]
    assert 'b{worker="1"} 6' in lines
    assert 'h_seconds_bucket{worker="0",le="1"} 3' in lines
    assert lines.count("# TYPE h_seconds histogram") == 1
    assert "spillway_workers 2" in lines
    assert "spillway_worker_restarts_total 2" in lines
    assert len([line for line in lines if not line.startswith("#")]) == 12


def test_the_least_healthy_worker_speaks_for_all() -> None:
    well, ill = b'{"status":"ok","n":2}', b'{"status":"unavailable","n":0}'
    status, body = merge_health({0: (200, well), 1: (503, ill)}, 2, 2)
    assert (status, json.loads(body)) == (
        503,
        {"status": "unavailable", "n": 0, "workers": 2, "workers_wanted": 2},
    )
    status, body = merge_health({1: (200, well)}, 1, 2)
    assert (status, json.loads(body)["workers"]) == (200, 1)
    assert merge_health({}, 0, 2)[0] == 503


def test_decisions_are_in_order_of_time() -> None:
    def page(*times: float) -> bytes:
        return json.dumps({"decisions": [{"decided_at_s": time_s} for time_s in times]}).encode()

    merged = json.loads(merge_decisions({0: page(5, 1), 1: page(4, 3)}, 3))
    assert [one["decided_at_s"] for one in merged["decisions"]] == [5, 4, 3]


def test_the_live_page_adds_up_what_is_counted() -> None:
    def page(count: int, at_s: float) -> bytes:
        return json.dumps(
            {
                "now_s": at_s,
                "inflight": count,
                "connections": 1,
                "requests": [["prefill", "finished", count]],
                "decisions": {"static": count},
                "ttft": {"prefill": [count, 0]},
                "gaps": {"prefill": [1, count]},
                "nodes": [{"id": "d0"}],
                "last": [{"at_s": at_s}],
            }
        ).encode()

    merged = json.loads(merge_figures({0: page(2, 7.0), 1: page(3, 8.0)}))
    assert (merged["inflight"], merged["connections"]) == (5, 2)
    assert merged["requests"] == [["prefill", "finished", 5]]
    assert merged["decisions"] == {"static": 5}
    assert (merged["ttft"], merged["gaps"]) == ({"prefill": [5, 0]}, {"prefill": [2, 5]})
    assert [line["at_s"] for line in merged["last"]] == [8.0, 7.0]
    assert merged["nodes"] == [{"id": "d0"}]


def test_the_work_on_a_node_is_that_of_all_workers() -> None:
    def page(count: int) -> bytes:
        return json.dumps({"nodes": [{"name": "d0", "outstanding": count}]}).encode()

    merged = json.loads(merge_nodes({0: page(1), 1: page(4)}))
    assert merged == {"nodes": [{"name": "d0", "outstanding": 5}]}
