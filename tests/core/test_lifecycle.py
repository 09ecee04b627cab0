"""The transition table: what it allows, and that everything else raises."""

from __future__ import annotations

from itertools import product

import pytest

from spillway.core.errors import InvariantViolation
from spillway.core.lifecycle import TRANSITIONS, State, Trigger, advance

FINAL = {State.FINISHED, State.FAILED, State.REJECTED, State.CANCELLED}
LIVE = set(State) - FINAL


@pytest.mark.parametrize(("state", "trigger"), list(product(State, Trigger)))
def test_every_pair_is_listed_or_raises(state: State, trigger: Trigger) -> None:
    before = dict(TRANSITIONS)
    if (state, trigger) in TRANSITIONS:
        assert advance(state, trigger) is TRANSITIONS[state, trigger]
    else:
        with pytest.raises(InvariantViolation, match=f"{trigger}.*{state.name}"):
            advance(state, trigger)
    assert before == TRANSITIONS


def test_inv_2_a_final_state_has_no_way_out() -> None:
    assert {state for state in State if state.is_final} == FINAL
    assert {state for state, _ in TRANSITIONS} == LIVE


def test_every_state_can_be_reached_and_every_live_one_can_end_in_three_ways() -> None:
    reached = {State.ARRIVED}
    for _ in State:
        reached |= {after for (state, _), after in TRANSITIONS.items() if state in reached}
    assert reached == set(State)
    for state in LIVE - {State.ARRIVED, State.HELD}:
        for trigger in (Trigger.FINISH, Trigger.FAIL, Trigger.CANCEL):
            assert advance(state, trigger).is_final


@pytest.mark.parametrize(
    ("triggers", "end"),
    [
        ("to_prefill to_decode first_token finish", State.FINISHED),
        ("to_deflected first_token finish", State.FINISHED),
        ("to_deflected finish", State.FINISHED),
        ("to_prefill to_prefill to_decode to_decode first_token fail", State.FAILED),
        ("to_prefill to_decode to_deflected to_prefill cancel", State.CANCELLED),
        ("to_prefill finish", State.FINISHED),
        ("reject", State.REJECTED),
        ("hold to_prefill to_decode first_token finish", State.FINISHED),
        ("hold to_deflected first_token finish", State.FINISHED),
        ("hold reject", State.REJECTED),
        ("hold fail", State.FAILED),
        ("hold cancel", State.CANCELLED),
    ],
)
def test_the_walks_that_a_request_may_take(triggers: str, end: State) -> None:
    state = State.ARRIVED
    for trigger in triggers.split():
        assert not state.is_final
        state = advance(state, Trigger(trigger))
    assert state is end


def test_a_streaming_request_is_never_started_again() -> None:
    starts = {Trigger.TO_PREFILL, Trigger.TO_DECODE, Trigger.TO_DEFLECTED}
    assert not any((State.DECODING, trigger) in TRANSITIONS for trigger in starts)
