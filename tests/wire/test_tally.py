"""Records taken in one at a time, in whatever order they end, come to what all of them come to."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest
from msgspec import structs

from spillway.stats import GapHistogram
from spillway.wire.records import RequestRecord, TtftParts
from spillway.wire.results import RunResult, run_result, summarise
from spillway.wire.tally import Tally

BYTES_PER_REQUEST_MAX = 48  # six columns of floats


def records(count: int) -> list[RequestRecord]:
    """Return records of every outcome, some with equal TTFTs and some without parts."""
    rng = Random(1)
    return [
        RequestRecord(
            request_id=f"r{number}",
            arrival_s=float(number),
            prompt_tokens=100,
            output_tokens=11,
            slo_ttft_s=1.0,
            slo_tbt_s=0.05,
            outcome=rng.choice(["finished", "finished", "failed", "rejected", "cancelled"]),
            route=rng.choice(["prefill", "deflected", ""]),
            reason=rng.choice(["static", ""]),
            ttft_s=rng.choice([None, rng.random(), 0.95]),
            gaps=10,
            gaps_late=rng.choice([0, 1]),
            gap_mean_s=0.1 * rng.random(),
            kv_bytes_moved=number,
            parts=rng.choice([None, TtftParts(queue=rng.random(), execute=rng.random())]),
        )
        for number in range(count)
    ]


def result(tally: Tally) -> RunResult:
    return run_result(tally, policy="p", gaps=GapHistogram(), wall_s=1.0)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 300])
def test_the_order_in_which_requests_end_changes_no_bit(count: int) -> None:
    kept = records(count)
    ended = list(enumerate(kept))
    Random(2).shuffle(ended)
    tally = Tally(count)
    for at, record in ended:
        tally.add(at, record)
    assert result(tally) == summarise(policy="p", records=kept, gaps=GapHistogram(), wall_s=1.0)


def test_the_parts_are_those_of_the_requests_between_p93_and_p97() -> None:
    tally = Tally(101)
    for at, record in enumerate(records(101)):
        parts = TtftParts(queue=float(at))
        tally.add(at, structs.replace(record, ttft_s=at / 100, parts=parts))
    assert tally.parts_p95_s()["queue"] == 95.0  # the mean of 93 to 97
    assert tally.parts_p95_s()["execute"] == 0.0


def test_a_tally_holds_so_many_bytes_a_request_whatever_the_records_hold() -> None:
    one, count = records(1)[0], 2_000
    tracemalloc.start()
    try:
        before_bytes, _ = tracemalloc.get_traced_memory()
        tally = Tally(count)
        for at in range(count):
            tally.add(at, one)
        held_bytes = tracemalloc.get_traced_memory()[0] - before_bytes
    finally:
        tracemalloc.stop()
    assert held_bytes < 1.1 * BYTES_PER_REQUEST_MAX * count
