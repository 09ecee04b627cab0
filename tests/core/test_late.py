"""Early rejection: only what no safe path can serve in time, and only when it is asked for."""

from __future__ import annotations

from math import inf

import pytest

from builders import make_cluster, make_node, make_request, make_spec
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.events import AnswerError, LegFailed, LogDecision, RequestArrived
from spillway.core.invariants import check_decision, check_dispatcher
from spillway.core.late import late_by_s, refused
from spillway.core.types import Role


def a_decision(*paths: tuple[float, Reason], estimate_s: float = 0.0) -> Decision:
    candidates = tuple(
        Candidate("p0", "d0", TtftEstimate(queue_s=total_s), verdict) for total_s, verdict in paths
    )
    estimate = TtftEstimate(queue_s=estimate_s)
    return Decision(Route.PREFILL, Reason.STATIC, "p0", "d0", estimate, candidates=candidates)


@pytest.mark.parametrize(
    ("decision", "late_s"),
    [
        (a_decision(), 0.0),  # nothing is predicted
        (a_decision(estimate_s=0.9), 0.0),
        (a_decision(estimate_s=1.5), 0.75),
        (a_decision((1.5, Reason.CHOSEN), (0.5, Reason.SLOWER), estimate_s=1.5), 0.0),
        (a_decision((1.5, Reason.CHOSEN), (0.5, Reason.TBT_VETO), estimate_s=1.5), 0.75),
        (a_decision(estimate_s=inf), 0.0),
    ],
)
def test_the_fastest_safe_path_counts_and_what_was_waited(decision, late_s) -> None:
    now_s = 0.25 if late_s else 0.0
    assert late_by_s(decision, make_request(ttft_s=1.0), now_s) == late_s


def test_a_refusal_names_no_node_and_keeps_the_estimates() -> None:
    decision = refused(a_decision((1.5, Reason.CHOSEN), (1.2, Reason.SLOWER), estimate_s=1.5))
    assert (decision.route, decision.reason) == (Route.REJECTED, Reason.TOO_LATE)
    assert [one.verdict for one in decision.candidates] == [Reason.TTFT_VETO] * 2
    assert late_by_s(decision, make_request(ttft_s=1.0), 0.0) == pytest.approx(0.2)
    request, cluster = make_request(), make_cluster(make_node("p0", Role.PREFILL), make_node())
    check_decision(decision, request, cluster)


class Says:
    """A policy that predicts what it is told to."""

    name = "says"
    estimate_s = 3.0

    def decide(self, request, cluster):
        estimate = TtftEstimate(queue_s=self.estimate_s)
        return Decision(Route.PREFILL, Reason.STATIC, "p0", "d0", estimate)

    def pick_decode(self, request, cluster):
        return "d0"


def a_dispatcher(**limits) -> Dispatcher:
    nodes = [make_spec("p0", Role.PREFILL), make_spec("d0")]
    return Dispatcher(Says(), nodes, DispatchLimits(**limits))


def test_it_is_off_unless_asked_for() -> None:
    actions = a_dispatcher().handle(RequestArrived(make_request(ttft_s=1.0)), 0.0)
    assert not any(isinstance(action, AnswerError) for action in actions)


def test_what_comes_too_late_is_answered_with_when_to_try_again() -> None:
    dispatcher = a_dispatcher(reject_late=True)
    log, answer = dispatcher.handle(RequestArrived(make_request(ttft_s=1.0)), 0.0)
    assert isinstance(log, LogDecision)
    assert log.decision.reason is Reason.TOO_LATE
    assert answer == AnswerError("r1", 503, Reason.TOO_LATE, 2.0)
    assert dispatcher.live_requests == 0
    check_dispatcher(dispatcher)


def test_a_request_that_was_taken_is_not_refused_when_a_leg_fails() -> None:
    dispatcher = a_dispatcher(reject_late=True)
    dispatcher.policy.estimate_s = 0.5
    dispatcher.handle(RequestArrived(make_request(ttft_s=1.0)), 0.0)
    dispatcher.policy.estimate_s = 3.0
    actions = dispatcher.handle(LegFailed("r1", "p0", "broken_off"), 0.1)
    assert not any(isinstance(action, AnswerError) for action in actions)
