"""A dispatcher whose books are checked after every event, and policies that misbehave."""

from __future__ import annotations

from builders import make_request, make_spec, make_state
from spillway.core.baselines import LeastLoaded
from spillway.core.decide import Decision, Policy
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import InvariantViolation
from spillway.core.events import (
    Action,
    Event,
    LegFailed,
    LogDecision,
    NodeReported,
    RequestArrived,
)
from spillway.core.invariants import check_dispatcher
from spillway.core.lifecycle import State
from spillway.core.placement import deflect_or_reject
from spillway.core.types import ClusterView, NodeId, RequestView, Role


class AlwaysDeflect(LeastLoaded):
    """Deflects whenever that is safe."""

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        return deflect_or_reject(request, cluster)


class Broken(LeastLoaded):
    """A policy with a bug."""

    error: type[Exception] = ZeroDivisionError

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        raise self.error("a bug")

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        raise self.error("a bug")


class Contradictory(Broken):
    """A policy that finds the program's own state broken."""

    error = InvariantViolation


class Harness:
    """A dispatcher for 2 prefill and 2 decode nodes that checks its books after every event."""

    def __init__(
        self, policy: Policy | None = None, prefill: int = 2, decode: int = 2, retries_max: int = 2
    ) -> None:
        specs = [make_spec(f"p{at}", Role.PREFILL) for at in range(prefill)]
        specs += [make_spec(f"d{at}") for at in range(decode)]
        limits = DispatchLimits(retries_max=retries_max)
        policy = policy or LeastLoaded()
        self.dispatcher = Dispatcher(policy, specs, limits, record_views=True)
        self.now_s = 0.0
        for spec in specs:
            self(NodeReported(make_state(spec.node_id)))

    def __call__(self, *events: Event) -> list[Action]:
        """Take events 10 ms apart; return the last one's orders but for the log."""
        orders: list[Action] = []
        for event in events:
            self.now_s += 0.01
            orders = self.dispatcher.handle(event, self.now_s)
            check_dispatcher(self.dispatcher)
        return [order for order in orders if not isinstance(order, LogDecision)]

    def arrive(self, request_id: str = "r1", **changes: object) -> Action:
        (order,) = self(RequestArrived(make_request(request_id, **changes)))
        return order

    def count(self, state: State) -> int:
        return self.dispatcher.counts[state]


def refused(request_id: str, node_id: str) -> LegFailed:
    return LegFailed(request_id, node_id, "connection refused", refused=True)


def broken(request_id: str, node_id: str, **how: bool) -> LegFailed:
    return LegFailed(request_id, node_id, "connection reset", **how)
