"""A round of the router benchmark: who is asked, what is subtracted, and what a failure costs."""

import pytest


@pytest.fixture
def rounds(monkeypatch):
    """The benchmark with loads that answer at once; `failing` holds the names that do not."""
    import bench_router
    from mocks import BenchError, Load
    from rig import Rig, Subject, two_cores

    asked, failing = [], {}

    def run_load(_rig, subject, **_flags):
        asked.append(subject.name)
        if failing.get(subject.name, 0) > 0:
            failing[subject.name] -= 1
            raise BenchError("it broke")
        us = {"direct": 100.0, "spillway": 150.0, "smg": 400.0}[subject.name]
        series = {"p50": us, "p99": 2 * us, "count": 640}
        return Load(10, 10, 0, 0, 0, 0, 0, 1.0, series, series, series, series), 6400.0

    monkeypatch.setattr(bench_router, "run_load", run_load)
    names = ("direct", "spillway", "smg")
    subjects = tuple(Subject(name, at, None, legs=at > 0) for at, name in enumerate(names))
    rig = Rig(two_cores(), (1,), True, subjects)
    works = {one.name: one for one in bench_router.works(repeats(bench_router), pinned=True)}

    def one_round(name, at=0, wrong=None):
        return bench_router._one_round(rig, works[name], at, {} if wrong is None else wrong)

    return one_round, asked, failing


def repeats(bench_router):
    return bench_router.Repeats(2, 1, 0.5, 10, False)


def test_added_latencies_are_less_the_direct_one_and_cpu_is_by_the_chunk(rounds):
    one_round, asked, _failing = rounds
    found = one_round("100 streams/s")
    assert asked == ["direct", "spillway", "smg"]
    assert found["direct"]["added TTFT p50"] == 100.0
    assert found["spillway"]["added TTFT p50"] == 50.0
    assert found["smg"]["added per-chunk latency p99"] == 600.0
    assert found["spillway"]["CPU per chunk"] == 10.0  # 6,400 us over 640 events


def test_who_comes_first_changes_with_the_round(rounds):
    one_round, asked, _failing = rounds
    one_round("100 streams/s", at=1)
    assert asked == ["direct", "smg", "spillway"]


def test_a_closed_loop_has_no_latency_to_subtract(rounds):
    one_round, asked, _failing = rounds
    found = one_round("busy requests")
    assert asked == ["spillway", "smg"]
    assert found["smg"] == {"CPU per request": 640.0}


def test_a_load_that_goes_wrong_is_tried_once_more_and_then_reported(rounds):
    one_round, asked, failing = rounds
    wrong = {}
    failing["spillway"] = 1
    assert one_round("busy requests", wrong=wrong)["spillway"]
    assert wrong == {}
    failing["spillway"] = 2
    assert one_round("busy requests", wrong=wrong)["spillway"] == {}
    assert wrong == {("spillway", "busy requests"): "round 1: it broke"}
    assert asked.count("smg") == 2


def test_targets_are_for_separate_pools_and_pinned_processes():
    import bench_router

    assert bench_router._targets("P/D, pinned", "busy requests", "CPU per request") == {
        "vllm-router": 0.5,
        "smg": 0.5,
    }
    assert bench_router._targets("regular, pinned", "busy requests", "CPU per request") == {}
    every = {
        (work.name, quantity)
        for work in bench_router.works(repeats(bench_router), pinned=True)
        for quantity in bench_router._quantities(work)
    }
    assert set(bench_router.TARGETS) <= every | {("open streams", "memory per stream")}
