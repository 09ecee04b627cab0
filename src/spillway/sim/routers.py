"""Several routers in front of the same simulated nodes, each with books of its own.

To the cluster they look like one dispatcher: a fact about a request goes to the router that has it,
a fact about a node to all of them. They share nothing but the numbers of their dispatches, so that
one "highest seen" of a node says to each which of its own are in a report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from math import inf
from random import Random
from typing import TYPE_CHECKING

from spillway.core.dispatcher import Dispatcher
from spillway.core.errors import InvariantViolation
from spillway.core.events import (
    Action,
    AnswerError,
    ClientLeft,
    Event,
    NodeReported,
    RequestArrived,
    RequestFinished,
    SetTimer,
    StartDeflected,
    TimerFired,
)
from spillway.core.fleet import ABOUT_NODES
from spillway.core.lifecycle import State
from spillway.core.reservation import UNLIMITED, Ask, NodeLoad, Verdict, judge
from spillway.core.types import RequestId
from spillway.sim.snapshot import node_state

if TYPE_CHECKING:
    from spillway.sim.flights import Flight
    from spillway.sim.node import SimNode


class Routers:
    """The routers of a simulated cluster. Requests reach each of them by chance, alike often.

    declined: deflections that a node did not take.
    """

    def __init__(self, dispatchers: Sequence[Dispatcher], rng: Random) -> None:
        self.each = tuple(dispatchers)
        self._rng = rng
        self._of: dict[RequestId, Dispatcher] = {}
        self._timers_s = dict.fromkeys(range(len(self.each)), inf)
        self._timer_s = inf
        self.declined = 0

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Tell whom it concerns; return the orders of all of them, with one timer for all."""
        kind = type(event)
        if kind is TimerFired:
            return self._timer_fired(now_s)
        if kind in ABOUT_NODES:
            actions: list[Action] = []
            for dispatcher in self.each:
                actions += self._told(dispatcher, event, now_s)
            return actions
        if isinstance(event, RequestArrived):
            request_id = event.request.request_id
            dispatcher = self._of[request_id] = self._rng.choice(self.each)
        else:
            request_id = getattr(event, "request_id", "")
            found = self._of.get(request_id)
            if found is None:
                raise InvariantViolation(f"no router has a request for {event}")
            dispatcher = found
        actions = self._told(dispatcher, event, now_s)
        if kind in (RequestFinished, ClientLeft):
            self._of.pop(request_id, None)
        return actions

    def is_granted(
        self, order: StartDeflected, flight: Flight, node: SimNode, now_s: float
    ) -> bool:
        """Return whether the node takes a deflection; if not, it tells its router how it stands."""
        if order.backlog_tokens_max == UNLIMITED:
            return True
        state = node_state(node, now_s)
        load = NodeLoad(
            state.backlog_tokens, state.kv_used_tokens, state.kv_capacity_tokens, state.over_budget
        )
        tokens = flight.request.uncached_tokens(order.node_id)
        ask = Ask("", order.dispatch_id, tokens, 0.0, order.backlog_tokens_max)
        if judge(ask, load) is Verdict.GRANTED:
            return True
        self.declined += 1
        self._of[order.request_id].handle(NodeReported(state), now_s)
        return False

    def _told(self, dispatcher: Dispatcher, event: Event, now_s: float) -> list[Action]:
        actions = dispatcher.handle(event, now_s)
        for action in actions:
            if type(action) is AnswerError:
                del self._of[action.request_id]
        timers = [action for action in actions if type(action) is SetTimer]
        if not timers:
            return actions
        self._timers_s[self.each.index(dispatcher)] = timers[-1].at_s
        return [action for action in actions if type(action) is not SetTimer] + self._timer()

    def _timer(self) -> list[Action]:
        at_s = min(self._timers_s.values())
        if at_s >= self._timer_s:
            return []
        self._timer_s = at_s
        return [SetTimer(at_s)]

    def _timer_fired(self, now_s: float) -> list[Action]:
        self._timer_s = inf
        actions: list[Action] = []
        for at, dispatcher in enumerate(self.each):
            if self._timers_s[at] <= now_s:
                self._timers_s[at] = inf
                actions += self._told(dispatcher, TimerFired(), now_s)
        return actions + self._timer()

    # --- sums --------------------------------------------------------------------------------

    @property
    def live_requests(self) -> int:
        """Return how many requests have not ended."""
        return sum(dispatcher.live_requests for dispatcher in self.each)

    @property
    def counts(self) -> list[int]:
        """Return the requests per state."""
        return [sum(dispatcher.counts[state] for dispatcher in self.each) for state in State]

    @property
    def ignored_events(self) -> int:
        return sum(dispatcher.ignored_events for dispatcher in self.each)

    @property
    def policy_failures(self) -> int:
        return sum(dispatcher.policy_failures for dispatcher in self.each)


def several(routers: int, make: Callable[..., Dispatcher], rng: Random) -> Dispatcher | Routers:
    """Return one dispatcher as `make` makes it, or as many behind one face."""
    if routers == 1:
        return make()
    ids = count(1)
    return Routers([make(dispatch_ids=ids) for _ in range(routers)], rng)


def dispatchers_of(dispatcher: Dispatcher | Routers) -> tuple[Dispatcher, ...]:
    """Return each of several dispatchers, or the one."""
    return dispatcher.each if isinstance(dispatcher, Routers) else (dispatcher,)
