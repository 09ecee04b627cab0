"""A closed loop: no turn begins before the one before it is over, and nothing is lost."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise

import pytest

from spillway.core.errors import ConfigError
from spillway.sim.faults import NodeDies
from spillway.sim.run import RunOutput, run
from spillway.sim.scenario import Scenario, swarm
from spillway.sim.turns import Turn, Turns
from spillway.stats import percentile
from spillway.workload.row import Row
from spillway.workload.synthetic import family

CLOSED = Scenario(policy="headroom", closed_loop=True)


def row(arrival_s: float, session_id: str = "", think_s: float = 0.0) -> Row:
    return Row(arrival_s, 2000, 20, session_id=session_id, think_s=think_s)


def by_session(rows: list[Row]) -> list[list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(rows):
        if one.session_id:
            found[one.session_id].append(index)
    return list(found.values())


def check_order(rows: list[Row], output: RunOutput) -> int:
    """Check every turn against the one before it; return how many had one."""
    turns = 0
    for session in by_session(rows):
        for before, after in pairwise(session):
            ended_s = output.records[before].finish_s
            assert ended_s is not None
            arrival_s, think_s = output.records[after].arrival_s, rows[after].think_s
            assert arrival_s >= ended_s
            expected_s = ended_s + think_s if think_s else max(ended_s, rows[after].arrival_s)
            assert arrival_s == expected_s
            turns += 1
    return turns


def test_a_turn_follows_its_own_session_after_the_recorded_pause() -> None:
    rows = [row(0.0, "a"), row(1.0, "b"), row(2.0), row(3.0, "a", 4.0), row(5.0, "b")]
    turns = Turns(rows)
    assert turns.first == [0, 1, 2]
    assert turns.after(0, 10.0) == Turn(3, 14.0)
    assert turns.after(1, 2.0) == Turn(4, 5.0), "no pause is known: its recorded time"
    assert turns.after(1, 9.0) == Turn(4, 9.0), "and never before the turn before has ended"
    assert turns.after(2, 3.0) is None
    assert turns.after(3, 20.0) is None
    assert (turns.waiting_count, turns.unknown_count) == (2, 1)
    assert turns.note() == (
        "closed loop: 2 of 5 requests wait for the turn before them; 1 have no recorded pause, and "
        "wait for their time too"
    )


def test_a_conversation_inside_another_goes_its_own_way() -> None:
    turns = Turns([row(0.0, "a"), row(1.0, "a/1"), row(2.0, "a/1", 1.0), row(3.0, "a", 1.0)])
    assert turns.first == [0, 1]
    assert turns.after(1, 5.0) == Turn(2, 6.0)
    assert turns.after(0, 5.0) == Turn(3, 6.0)


def test_a_loop_without_sessions_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs sessions of several turns"):
        run(CLOSED, [row(0.0), row(1.0), row(2.0, "a")], 1)


@pytest.mark.parametrize("policy", ["least-loaded", "headroom", "kairos-paper"])
def test_no_turn_starts_before_the_former_ended_and_no_work_is_lost(policy: str) -> None:
    rows = family("sessions", 2, 20.0, 8.0)
    output = run(replace(CLOSED, policy=policy), rows, 2, checks=True)
    assert check_order(rows, output) > 30
    assert [one.request_id for one in output.records] == [f"r{at}" for at in range(len(rows))]
    assert all(one.outcome == "finished" for one in output.records)
    assert [one.output_tokens for one in output.records] == [one.output_tokens for one in rows]
    assert [one.prompt_tokens for one in output.records] == [one.prompt_tokens for one in rows]


def test_a_session_goes_on_after_a_turn_that_was_cut_short() -> None:
    rows = family("sessions", 3, 15.0, 8.0)
    scenario = replace(
        CLOSED,
        cancel_frac=0.3,
        patience_s=0.5,
        retries_max=0,
        faults=(NodeDies(node_id="d0", at_s=4.0, back_s=8.0),),
    )
    output = run(scenario, rows, 3, checks=True)
    assert check_order(rows, output) > 20
    assert {one.outcome for one in output.records} >= {"finished", "cancelled"}
    assert len(output.records) == len(rows)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3, 6, 9])
def test_the_laws_hold_in_a_closed_loop_however_broken_the_cluster_is(seed: int) -> None:
    scenario, _ = swarm(seed)
    rows = family("sessions", seed, 9.0, 8.0)
    output = run(replace(scenario, closed_loop=True), rows, seed, checks=True)
    assert check_order(rows, output) > 0


def test_an_overloaded_cluster_is_asked_less() -> None:
    rows = family("sessions", 1, 30.0, 40.0)
    waits_s = {}
    for closed in (False, True):
        scenario = Scenario(cluster="1p1d", policy="least-loaded", closed_loop=closed)
        output = run(scenario, rows, 1)
        ttfts_s = sorted(one.ttft_s for one in output.records if one.ttft_s is not None)
        waits_s[closed] = percentile(ttfts_s, 0.95)
        assert len(ttfts_s) == len(rows)
    assert waits_s[True] < 0.8 * waits_s[False]


def test_a_closed_loop_is_the_same_twice() -> None:
    rows = family("sessions", 4, 10.0)
    scenario = replace(CLOSED, noise_frac=0.2, report_loss_frac=0.1, cancel_frac=0.1)
    assert run(scenario, rows, 4).records == run(scenario, rows, 4).records


def test_without_the_option_arrivals_are_the_recorded_ones() -> None:
    rows = family("sessions", 4, 10.0)
    records = run(Scenario(policy="headroom"), rows, 4).records
    assert [one.arrival_s for one in records] == [one.arrival_s for one in rows]
