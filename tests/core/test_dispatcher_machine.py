"""The dispatcher attacked with any order of facts that a fleet may produce.

Hypothesis plays the drivers: it starts requests, lets legs succeed, fail and break, loses nodes and
lets them report, truly or not. Beside it runs a model that knows only what the orders said. After
each fact the books must add up, and the model and the dispatcher must agree on every request.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import strategies as sp
from builders import make_spec
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.events import (
    AbortOnNode,
    Action,
    AnswerError,
    ClientLeft,
    Event,
    FirstToken,
    LegFailed,
    LogDecision,
    NodeBack,
    NodeLost,
    NodeReported,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    SetTimer,
    StartDecode,
    StartDeflected,
    StartPrefill,
    TimerFired,
)
from spillway.core.invariants import check_decision, check_dispatcher
from spillway.core.lifecycle import State
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.core.types import RequestView, Role

PHASE_OF = {
    StartPrefill: State.PREFILLING,
    StartDecode: State.TRANSFERRING,
    StartDeflected: State.DEFLECTED,
}


class Told:
    """What the orders have said of one live request."""

    def __init__(self) -> None:
        self.phase = State.ARRIVED
        self.node_id = ""
        self.starts = self.failures = 0
        self.source_id = ""  # where its KV is
        self.failed_on: set[str] = set()


class Machine(RuleBasedStateMachine):
    """See the module docstring."""

    @initialize(
        policy=st.sampled_from(POLICY_NAMES),
        prefill=st.integers(1, 3),
        decode=st.integers(1, 3),
        retries_max=st.integers(0, 3),
    )
    def start(self, policy: str, prefill: int, decode: int, retries_max: int) -> None:
        specs = [make_spec(f"p{at}", Role.PREFILL) for at in range(prefill)]
        specs += [make_spec(f"d{at}") for at in range(decode)]
        self.dispatcher = Dispatcher(
            build_policy(policy), specs, DispatchLimits(retries_max=retries_max), record_views=True
        )
        self.policy = policy
        self.node_ids = [spec.node_id for spec in specs]
        self.retries_max = retries_max
        self.lost: set[str] = set()
        self.live: dict[str, Told] = {}
        self.ended: list[str] = []
        self.now_s = 0.0
        self.last_dispatch = 0
        self.timer_s: float | None = None

    def tell(self, event: Event) -> None:
        for order in self.dispatcher.handle(event, self.now_s):
            self.obey(order)

    def obey(self, order: Action) -> None:
        match order:
            case LogDecision(request, decision, decided_at_s, cluster):
                assert cluster is not None
                assert decided_at_s == self.now_s
                check_decision(decision, request, cluster)
            case AnswerError(request_id, status, _):
                assert status in (502, 503)
                self.forget(request_id)
            case AbortOnNode():
                raise AssertionError("an abort is for a client that left")
            case SetTimer(at_s):
                assert at_s > self.now_s
                self.timer_s = at_s
            case StartPrefill() | StartDecode() | StartDeflected():
                self.started(order)

    def started(self, order: StartPrefill | StartDecode | StartDeflected) -> None:
        told = self.live[order.request_id]
        assert order.dispatch_id == self.last_dispatch + 1
        self.last_dispatch = order.dispatch_id
        assert order.node_id not in self.lost
        assert order.node_id not in told.failed_on
        if not (self.policy == "colocated" and isinstance(order, StartDeflected)):  # of both pools
            assert order.node_id.startswith("p" if isinstance(order, StartPrefill) else "d")
        if isinstance(order, StartDecode):
            assert order.prefill_node_id.startswith("p")
            told.source_id = order.prefill_node_id
        told.phase, told.node_id = PHASE_OF[type(order)], order.node_id
        told.starts += 1
        assert told.starts <= 2 * (self.retries_max + 1)

    def forget(self, request_id: str) -> None:
        del self.live[request_id]
        self.ended.append(request_id)

    def pick(self, data: st.DataObject, *phases: State) -> str | None:
        fitting = [one for one, told in self.live.items() if told.phase in phases]
        return data.draw(st.sampled_from(fitting), "request") if fitting else None

    # --- facts -------------------------------------------------------------------------------

    @rule(step_s=st.sampled_from((0.0, 0.001, 0.05, 0.7, 2.0)))
    def wait(self, step_s: float) -> None:
        self.now_s += step_s

    @rule(request=sp.requests(("p0", "p1", "d0", "d1")))
    def arrive(self, request: RequestView) -> None:
        request_id = f"r{len(self.live) + len(self.ended)}"
        self.live[request_id] = Told()
        self.live[request_id].phase = State.HELD  # until an order says otherwise
        self.tell(RequestArrived(request._replace(request_id=request_id)))
        assert request_id not in self.live or self.live[request_id].starts <= 1

    @rule(data=st.data())
    def prefill_finishes(self, data: st.DataObject) -> None:
        request_id = self.pick(data, State.PREFILLING)
        if request_id is not None:
            self.tell(PrefillFinished(request_id))
            assert request_id not in self.live or (
                self.live[request_id].phase is State.TRANSFERRING
            )

    @rule(data=st.data())
    def first_token_comes(self, data: st.DataObject) -> None:
        request_id = self.pick(data, State.TRANSFERRING, State.DEFLECTED)
        if request_id is not None:
            self.tell(FirstToken(request_id))
            self.live[request_id].phase = State.DECODING

    @rule(data=st.data(), output_tokens=st.sampled_from((0, 1, 300)))
    def request_finishes(self, data: st.DataObject, output_tokens: int) -> None:
        request_id = self.pick(data, State.DECODING, State.DEFLECTED, State.TRANSFERRING)
        if request_id is not None:
            self.tell(RequestFinished(request_id, output_tokens))
            self.forget(request_id)

    @rule(data=st.data(), refused=st.booleans(), streaming=st.booleans(), kv_lost=st.booleans())
    def leg_fails(self, data: st.DataObject, refused: bool, streaming: bool, kv_lost: bool) -> None:
        request_id = self.pick(data, *PHASE_OF.values(), State.DECODING)
        if request_id is None:
            return
        told = self.live[request_id]
        final = streaming or told.phase is State.DECODING
        told.failures += 1
        source_died = told.phase is State.TRANSFERRING and kv_lost and told.source_id in self.lost
        if not source_died:
            told.failed_on.add(told.node_id)
        starts = told.starts
        self.tell(LegFailed(request_id, told.node_id, "broke", refused, streaming, kv_lost))
        if final or told.failures > self.retries_max:
            assert request_id not in self.live
        assert told.starts <= starts + 1

    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        request_id = self.pick(data, *PHASE_OF.values(), State.HELD, State.DECODING)
        if request_id is not None:
            told = self.live[request_id]
            orders = self.dispatcher.handle(ClientLeft(request_id), self.now_s)
            if told.phase is not State.HELD:  # a held request is nowhere to be stopped
                assert orders.pop(0) == AbortOnNode(request_id, told.node_id)
            self.forget(request_id)
            for order in orders:  # somebody who was held may have the room now
                self.obey(order)

    @precondition(lambda self: self.timer_s is not None)
    @rule()
    def timer_fires(self) -> None:
        assert self.timer_s is not None
        self.now_s, self.timer_s = max(self.now_s, self.timer_s), None
        self.tell(TimerFired())

    @rule(data=st.data(), truly=st.booleans())
    def node_reports(self, data: st.DataObject, truly: bool) -> None:
        node_id = data.draw(st.sampled_from(self.node_ids), "node")
        state = data.draw(sp.node_states(node_id, self.now_s, self.last_dispatch))
        if truly:
            state = state._replace(dispatch_seen=self.last_dispatch)
        self.tell(NodeReported(state))

    @rule(data=st.data())
    def node_is_lost(self, data: st.DataObject) -> None:
        node_id = data.draw(st.sampled_from(self.node_ids), "node")
        self.tell(NodeLost(node_id, "no answer"))
        self.lost.add(node_id)

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def node_is_back(self, data: st.DataObject) -> None:
        node_id = data.draw(st.sampled_from(sorted(self.lost)), "node")
        self.tell(NodeBack(node_id))
        self.lost.discard(node_id)

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), kind=st.sampled_from((PrefillFinished, FirstToken, RequestFinished)))
    def late_news_come(self, data: st.DataObject, kind: Any) -> None:
        before = self.dispatcher.ignored_events
        self.tell(kind(self.ended[-1]))
        assert self.dispatcher.ignored_events == before + 1

    # --- what must hold after each -----------------------------------------------------------

    @invariant()
    def the_books_add_up(self) -> None:
        check_dispatcher(self.dispatcher)

    @invariant()
    def model_and_dispatcher_agree(self) -> None:
        tracked = self.dispatcher._live
        assert set(tracked) == set(self.live)
        for request_id, told in self.live.items():
            assert tracked[request_id].state is told.phase
            assert tracked[request_id].node_id == told.node_id
        assert self.dispatcher.arrived == len(self.live) + len(self.ended)

    @invariant()
    def whoever_is_held_will_be_looked_at_again(self) -> None:
        if any(told.phase is State.HELD for told in self.live.values()):
            assert self.timer_s is not None

    @invariant()
    def no_policy_raises(self) -> None:
        assert self.dispatcher.policy_failures == 0

    def teardown(self) -> None:
        """Whatever happened, when every client has left the books are empty."""
        for request_id in sorted(self.live):
            self.dispatcher.handle(ClientLeft(request_id), self.now_s)
        check_dispatcher(self.dispatcher)
        for node in self.dispatcher.ledger.nodes.values():
            assert node.outstanding == 0


TestDispatcherMachine = pytest.mark.slow(Machine.TestCase)
TestDispatcherMachine.settings = settings(stateful_step_count=40)
