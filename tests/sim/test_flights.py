"""The record that a request leaves, in the cases a whole run seldom shows."""

from __future__ import annotations

import pytest

from builders import make_request
from simdrive import finish, job, round_node, step_of
from spillway.sim.flights import Flight, record_of


def flight(outcome: str = "cancelled", **changes: object) -> Flight:
    one = Flight(0, make_request(prompt_tokens=1000), 5)
    one.outcome, one.finish_s = outcome, 9.0
    for name, value in changes.items():
        setattr(one, name, value)
    return one


def test_a_request_that_never_ran_has_no_figures() -> None:
    record = record_of(flight("rejected", error="no_node"))
    assert (record.ttft_s, record.parts, record.output_tokens, record.gaps) == (None, None, 0, 0)
    assert (record.outcome, record.error, record.finish_s) == ("rejected", "no_node", 9.0)


def test_the_parts_of_a_local_request_are_its_wait_and_its_prefill() -> None:
    node = round_node()
    resident = node.submit_local(job("r1", 1000, 5), 0.5)
    finish(node)
    record = record_of(flight("finished", decode=resident))
    assert record.parts is not None
    assert record.parts.queue == pytest.approx(0.5)
    assert record.parts.execute == pytest.approx(step_of(0, 0, [(1000, 0)]))
    assert (record.output_tokens, record.gaps) == (5, 4)
    gaps_s = [step_of(1, 1001 + i) for i in range(4)]
    assert record.gap_mean_s == pytest.approx(sum(gaps_s) / 4)
    assert record.gap_max_s == pytest.approx(gaps_s[-1])


def test_a_first_token_after_the_client_left_is_none_but_its_gaps_still_count() -> None:
    node = round_node()
    resident = node.submit_local(job("r1", 1000, 5), 0.0)
    finish(node)
    record = record_of(flight(decode=resident, finish_s=0.001))
    assert (record.ttft_s, record.parts) == (None, None)
    assert (record.output_tokens, record.gaps) == (5, 4)


def test_a_flight_streams_from_its_first_token_on() -> None:
    node = round_node()
    resident = node.submit_local(job("r1", 1000, 5), 0.0)
    one = flight(decode=resident)
    assert not one.streaming
    finish(node, 0.05)
    assert one.streaming
