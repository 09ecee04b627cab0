"""Limits on how much work the hot paths do: functions called, memory at the peak, and their growth.

Counts and not times: they are the same on a loaded machine. A limit is about a quarter above what
is counted today; raise one only for something that is worth it, in the commit that does it.
"""

import pytest

CALLS_MAX = {
    "decision_2p2d_prompt_8k": 240,
    "decision_2p2d_calm": 75,
    "decision_128d_prompt_8k": 2_850,
    "plan_chunks_32k": 84,
    "dispatcher_cycle_2p2d": 310,
    "ledger_report_2p2d": 12,
    "report_decode": 8,
    "read_azure_row": 31,
    "read_mooncake_row": 26,
    "simulated_request_least_loaded": 510,
    "simulated_request_headroom": 680,
}
PEAK_BYTES_MAX = {
    "decision_2p2d_prompt_8k": 5_000,
    "decision_128d_prompt_8k": 33_000,
    "dispatcher_cycle_2p2d": 6_000,
    "report_decode": 2_600,
    "read_azure_row": 370,
    "read_mooncake_row": 940,
}


@pytest.fixture(scope="module")
def counted():
    """Return the work of every case of bench-core, by name and for one unit of it."""
    import bench_core
    from work import work_of

    def one(case):
        work = work_of(case.call)
        return work.calls / case.units, work.peak_bytes / case.units

    return {case.name: one(case) for case in bench_core.cases()}


@pytest.mark.slow
def test_no_hot_path_does_more_work_than_its_limit(counted):
    excess = {name: counted[name][0] for name, most in CALLS_MAX.items() if counted[name][0] > most}
    assert excess == {}


@pytest.mark.slow
def test_no_hot_path_takes_more_memory_than_its_limit(counted):
    excess = {
        name: counted[name][1] for name, most in PEAK_BYTES_MAX.items() if counted[name][1] > most
    }
    assert excess == {}


@pytest.mark.slow
def test_work_does_not_grow_with_what_it_must_not_depend_on(counted):
    calls = {name: work[0] for name, work in counted.items()}
    # a prompt of 32k tokens is planned in closed form, as one of 1k is
    assert calls["decision_2p2d_prompt_32k"] < 1.3 * calls["decision_2p2d_prompt_1k"]
    assert calls["decision_128d_prompt_32k"] < 1.3 * calls["decision_128d_prompt_1k"]
    # hearing from one node costs the same however many there are
    assert calls["ledger_report_128d"] == calls["ledger_report_2p2d"]
    # forty times the nodes, and fewer than twenty times the work
    assert calls["decision_128d_prompt_8k"] < 20 * calls["decision_2p2d_prompt_8k"]
    # sixteen times the nodes: a decision looks at each of them, and nothing else does
    assert calls["simulated_request_32p32d"] < 3.5 * calls["simulated_request_least_loaded"]


def test_what_is_counted():
    from work import work_of

    def three_calls():
        len("a")
        abs(-1)
        return bytes(100_000)  # a type, which is not counted

    assert work_of(three_calls).calls == 3  # itself, len, abs
    assert 100_000 <= work_of(three_calls).peak_bytes < 101_000
