"""The states of a request, as the table that is also their documentation.

A fact that the table does not list for the current state is a bug of ours and raises; late facts
about a request that has already ended are filtered before they reach the table.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

from spillway.core.errors import InvariantViolation


class State(IntEnum):
    """Where a request is. From FINISHED on a state is final. Integers index the counters."""

    ARRIVED = 0
    HELD = 1
    PREFILLING = 2
    TRANSFERRING = 3
    DEFLECTED = 4
    DECODING = 5
    FINISHED = 6
    FAILED = 7
    REJECTED = 8
    CANCELLED = 9

    @property
    def is_final(self) -> bool:
        return self >= State.FINISHED


class Trigger(StrEnum):
    """What moves a request along."""

    HOLD = "hold"
    TO_PREFILL = "to_prefill"
    TO_DECODE = "to_decode"
    TO_DEFLECTED = "to_deflected"
    FIRST_TOKEN = "first_token"
    FINISH = "finish"
    FAIL = "fail"
    REJECT = "reject"
    CANCEL = "cancel"


_S, _T = State, Trigger
TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (_S.ARRIVED, _T.TO_PREFILL): _S.PREFILLING,
    (_S.ARRIVED, _T.TO_DEFLECTED): _S.DEFLECTED,
    (_S.ARRIVED, _T.REJECT): _S.REJECTED,
    # Held back at the router, on no node.
    (_S.ARRIVED, _T.HOLD): _S.HELD,
    (_S.HELD, _T.TO_PREFILL): _S.PREFILLING,
    (_S.HELD, _T.TO_DEFLECTED): _S.DEFLECTED,
    (_S.HELD, _T.REJECT): _S.REJECTED,
    (_S.HELD, _T.FAIL): _S.FAILED,
    (_S.HELD, _T.CANCEL): _S.CANCELLED,
    # A failed leg is started again elsewhere, on either path.
    (_S.PREFILLING, _T.TO_PREFILL): _S.PREFILLING,
    (_S.PREFILLING, _T.TO_DEFLECTED): _S.DEFLECTED,
    (_S.PREFILLING, _T.TO_DECODE): _S.TRANSFERRING,
    (_S.PREFILLING, _T.FAIL): _S.FAILED,
    (_S.PREFILLING, _T.CANCEL): _S.CANCELLED,
    (_S.TRANSFERRING, _T.TO_DECODE): _S.TRANSFERRING,
    (_S.TRANSFERRING, _T.TO_PREFILL): _S.PREFILLING,
    (_S.TRANSFERRING, _T.TO_DEFLECTED): _S.DEFLECTED,
    (_S.TRANSFERRING, _T.FIRST_TOKEN): _S.DECODING,
    (_S.TRANSFERRING, _T.FINISH): _S.FINISHED,  # an answer without a stream has no first token
    (_S.TRANSFERRING, _T.FAIL): _S.FAILED,
    (_S.TRANSFERRING, _T.CANCEL): _S.CANCELLED,
    (_S.DEFLECTED, _T.HOLD): _S.HELD,  # its node declined it, and is worth waiting for
    (_S.DEFLECTED, _T.TO_DEFLECTED): _S.DEFLECTED,
    (_S.DEFLECTED, _T.TO_PREFILL): _S.PREFILLING,
    (_S.DEFLECTED, _T.FIRST_TOKEN): _S.DECODING,
    (_S.DEFLECTED, _T.FINISH): _S.FINISHED,
    (_S.DEFLECTED, _T.FAIL): _S.FAILED,
    (_S.DEFLECTED, _T.CANCEL): _S.CANCELLED,
    (_S.DECODING, _T.FINISH): _S.FINISHED,
    (_S.DECODING, _T.FAIL): _S.FAILED,
    (_S.DECODING, _T.CANCEL): _S.CANCELLED,
    # An engine may answer a prefill leg with the client's own fault (4xx), which ends the request.
    (_S.PREFILLING, _T.FINISH): _S.FINISHED,
}


def advance(state: State, trigger: Trigger) -> State:
    """Return the state after `trigger`. Raises InvariantViolation, leaving nothing changed."""
    after = TRANSITIONS.get((state, trigger))
    if after is None:
        raise InvariantViolation(f"{trigger} cannot happen to a request that is {state.name}")
    return after
