"""The state machine between facts and orders. Everything that can change a decision is in here.

`handle(event, now_s)` is the only way in and out. It does no I/O and reads no clock, so the asyncio
router and the simulator drive the very same object, and a recorded tape of events gives the same
orders through both (INV-9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf, isfinite
from typing import TypeVar

from spillway.core.decide import Decision, Policy, Reason, Route
from spillway.core.errors import ConfigError, InvariantViolation
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
    NodeLeft,
    NodeLost,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    StartDecode,
    StartDeflected,
    StartPrefill,
    TimerFired,
)
from spillway.core.fleet import ABOUT_NODES, AboutNode, hear
from spillway.core.holding import HoldLine, Planned, Tracked
from spillway.core.late import late_by_s, refused
from spillway.core.ledger import Ledger, decode_entry, frozen_copy, prefill_entry
from spillway.core.lifecycle import State, Trigger, advance
from spillway.core.placement import fall_back, fall_back_decode
from spillway.core.reservation import DECLINED_MAX, UNLIMITED, backlog_tokens_max
from spillway.core.retries import nodes_to_avoid
from spillway.core.ttft import book_transfer, execute_on_prefill_s, transfer_bytes
from spillway.core.types import ClusterView, NodeSpec, RequestId, RequestView, Role

Answer = TypeVar("Answer")
# Facts after which a node may have room for a request that is held.
REVIEWED_AFTER = frozenset(
    {PrefillFinished, FirstToken, ClientLeft, LegFailed, NodeLost, NodeBack, TimerFired}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchLimits:
    """Bounds of the dispatcher.

    report_age_max_s: a reporting node silent for longer gets no deflected work (INV-14).
    retries_max: how often a request may be started again after a failed leg.
    calibrated: believe the nodes on how their steps differ from their profile (`calibration.py`).
    held_max, hold_s_max: how many requests may be held back at a time, and for how long.
    reject_late: refuse what no path can serve within its TTFT target (`late.py`).
    """

    report_age_max_s: float = 1.0
    retries_max: int = 2
    calibrated: bool = True
    held_max: int = 1024
    hold_s_max: float = 30.0
    reject_late: bool = False

    def __post_init__(self) -> None:
        if not (isfinite(self.report_age_max_s) and self.report_age_max_s > 0):
            raise ConfigError("report_age_max_s must be positive and finite")
        if self.retries_max < 0 or self.held_max < 0:
            raise ConfigError("retries_max and held_max must not be negative")
        if not self.hold_s_max >= 0:
            raise ConfigError("hold_s_max must be a number >= 0")


class Dispatcher:
    """Decides, books, retries and gives orders. See the module docstring for the contract.

    counts: requests per state; INV-1 is that they sum to `arrived`.
    ignored_events: late facts about requests that had already ended, and reports that are overtaken
        or come from a node that is unknown or lost.
    policy_failures: decisions that the fall-back had to make because the policy raised.
    dispatch_ids: where the numbers of dispatches come from, rising; its own from 1 on.
    """

    def __init__(
        self,
        policy: Policy,
        nodes: Sequence[NodeSpec],
        limits: DispatchLimits = DispatchLimits(),
        *,
        record_views: bool = False,
        dispatch_ids: Iterator[int] | None = None,
    ) -> None:
        if len({spec.node_id for spec in nodes}) != len(nodes):
            raise ConfigError("two nodes share one id; every node needs its own")
        if not any(spec.role is Role.DECODE for spec in nodes):
            raise ConfigError("there is no decode node; at least one is needed")
        self.policy = policy
        self.limits = limits
        self.ledger = Ledger(
            nodes, report_age_max_s=limits.report_age_max_s, calibrated=limits.calibrated
        )
        self.arrived = 0
        self.ignored_events = 0
        self.policy_failures = 0
        self.counts = [0] * len(State)
        self.now_s = -float("inf")
        self._record_views = record_views
        self._dispatch_ids = dispatch_ids or count(1)
        self._live: dict[RequestId, Tracked] = {}
        self._held = HoldLine(policy)
        self._handlers: dict[type, Callable[..., list[Action]]] = {
            RequestArrived: self._arrived,
            PrefillFinished: self._prefill_finished,
            FirstToken: self._first_token,
            RequestFinished: self._finished,
            LegFailed: self._leg_failed,
            ClientLeft: self._client_left,
            NodeLeft: self._node_left,
            TimerFired: self._timer_fired,
            **dict.fromkeys(ABOUT_NODES, self._about_node),
        }

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Take one fact and return the orders that follow from it, in order.

        Raises InvariantViolation when time goes back or the fact contradicts the state (INV-3).
        """
        if not now_s >= self.now_s:  # NaN too
            raise InvariantViolation(f"time went back from {self.now_s} to {now_s}")
        self.now_s = now_s
        kind = type(event)
        actions = self._handlers[kind](event, now_s)
        if self._held and kind in REVIEWED_AFTER:
            actions += self._review(now_s)
        return actions

    @property
    def live_requests(self) -> int:
        """Return how many requests have not ended."""
        return len(self._live)

    # --- facts -------------------------------------------------------------------------------

    def _arrived(self, event: RequestArrived, now_s: float) -> list[Action]:
        request = event.request
        if request.request_id in self._live:
            raise InvariantViolation(f"request id {request.request_id} is in use")
        tracked = self._live[request.request_id] = Tracked(request, self.arrived)
        self.arrived += 1
        self.counts[State.ARRIVED] += 1
        if self._held and len(self._held) < self.limits.held_max:
            self._hold(tracked, self.ledger.cluster(now_s, tracked.index))
            return self._review(now_s)
        return self._decide(tracked, now_s)

    def _prefill_finished(self, event: PrefillFinished, now_s: float) -> list[Action]:
        tracked = self._live.get(event.request_id)
        if tracked is None or tracked.state is not State.PREFILLING:
            self.ignored_events += 1
            return []
        tracked.prefill_id = tracked.node_id
        self._unbook(tracked, now_s)
        return self._start_decode(tracked, now_s)

    def _first_token(self, event: FirstToken, now_s: float) -> list[Action]:
        tracked = self._live.get(event.request_id)
        if tracked is None or tracked.entry is None:
            self.ignored_events += 1
            return []
        self._move(tracked, Trigger.FIRST_TOKEN)
        self.ledger.nodes[tracked.node_id].first_token(tracked.entry, now_s)
        return []

    def _finished(self, event: RequestFinished, now_s: float) -> list[Action]:
        tracked = self._live.get(event.request_id)
        if tracked is None:
            self.ignored_events += 1
            return []
        if event.output_tokens > 0:
            self.ledger.lengths.add(tracked.request.class_name, event.output_tokens)
        self._close(tracked, Trigger.FINISH, now_s)
        return []

    def _client_left(self, event: ClientLeft, now_s: float) -> list[Action]:
        tracked = self._live.get(event.request_id)
        if tracked is None:
            self.ignored_events += 1
            return []
        node_id = tracked.node_id
        self._close(tracked, Trigger.CANCEL, now_s)
        return [AbortOnNode(event.request_id, node_id)] if node_id else []

    def _leg_failed(self, event: LegFailed, now_s: float) -> list[Action]:
        tracked = self._live.get(event.request_id)
        if tracked is None or tracked.node_id != event.node_id:
            self.ignored_events += 1
            return []
        request_id = event.request_id
        streaming = event.streaming or tracked.state is State.DECODING
        if streaming or (tracked.retries >= self.limits.retries_max and not event.declined):
            self._close(tracked, Trigger.FAIL, now_s)
            return [AnswerError(request_id, 502 if not event.refused else 503, event.reason)]
        if now_s >= tracked.request.deadline_s:
            self._close(tracked, Trigger.FAIL, now_s)
            return [AnswerError(request_id, 504, event.reason)]
        self._unbook(tracked, now_s)
        if event.declined:
            tracked.declined += 1
            tracked.declined_by = event.node_id
            return self._decide(tracked, now_s)
        tracked.retries += 1
        tracked.without = nodes_to_avoid(tracked, event, self.ledger, now_s)
        # The same KV serves another decode node as long as no node has begun to consume it.
        if tracked.state is State.TRANSFERRING and event.refused and not event.kv_lost:
            return self._start_decode(tracked, now_s)
        return self._decide(tracked, now_s)

    def _about_node(self, event: AboutNode, now_s: float) -> list[Action]:
        if not hear(event, self.ledger):
            self.ignored_events += 1
        return []

    def _node_left(self, event: NodeLeft, now_s: float) -> list[Action]:
        node_id = event.node_id
        needed = any(node_id in (t.node_id, t.prefill_id) for t in self._live.values())
        if needed or node_id not in self.ledger.nodes:
            self.ignored_events += 1
        else:
            self.ledger.leave(node_id)
        return []

    def _timer_fired(self, event: TimerFired, now_s: float) -> list[Action]:
        self._held.timer_s = inf
        return []

    # --- held requests -----------------------------------------------------------------------

    def _hold(self, tracked: Tracked, cluster: ClusterView) -> None:
        self._move(tracked, Trigger.HOLD)
        tracked.node_id = ""
        self._held.add(tracked, cluster)

    def _review(self, now_s: float) -> list[Action]:
        """Decide again who is held, from the head of the line on. See `core/holding.py`."""
        held, actions, planned = self._held, [], Planned()
        due_s = inf
        oldest_s = now_s - self.limits.hold_s_max
        for tracked in held.due(oldest_s):
            cluster = self.ledger.cluster(now_s, tracked.index)
            cluster.may_hold = tracked.request.arrival_s > oldest_s
            if cluster.may_hold and not held.anybody_may_go(cluster):
                break
            decision = self._choose(tracked, cluster, now_s)
            node_id = decision.prefill_node_id or decision.decode_node_id
            if decision.route is Route.HELD:
                due_s = min(due_s, decision.hold_until_s)
                if node_id is None:
                    break
                estimate, view = decision.estimate, self.ledger.nodes[node_id].view
                planned.book(view, now_s + estimate.queue_s + estimate.execute_s)
                continue
            if node_id is not None:
                planned.undo(node_id)
            actions += self._commit(tracked, decision, cluster, now_s)
        planned.undo()
        return actions + held.timer(due_s, now_s)

    # --- decisions and orders ----------------------------------------------------------------

    def _decide(self, tracked: Tracked, now_s: float) -> list[Action]:
        cluster = self.ledger.cluster(now_s, tracked.index, tracked.without)
        cluster.may_hold = (
            self._held.policy is not None
            and (tracked.state is State.ARRIVED or (tracked.declined > 0 and not tracked.retries))
            and len(self._held) < self.limits.held_max
        )
        decision = self._choose(tracked, cluster, now_s)
        if decision.route is Route.HELD:
            self._hold(tracked, cluster)
            return self._held.timer(decision.hold_until_s, now_s)
        return self._commit(tracked, decision, cluster, now_s)

    def _commit(
        self, tracked: Tracked, decision: Decision, cluster: ClusterView, now_s: float
    ) -> list[Action]:
        request = tracked.request
        view = frozen_copy(cluster) if self._record_views else None
        log = LogDecision(request, decision, now_s, view, tracked.declined_by)
        tracked.declined_by = ""
        if decision.route is Route.REJECTED:
            is_new = tracked.state in (State.ARRIVED, State.HELD) and not tracked.declined
            trigger = Trigger.REJECT if is_new else Trigger.FAIL
            self._close(tracked, trigger, now_s)
            wait_s = late_by_s(decision, request, now_s)
            return [log, AnswerError(request.request_id, 503, decision.reason, wait_s)]
        if decision.route is Route.DEFLECTED:
            return [log, self._start_deflected(tracked, decision, now_s)]
        return [log, self._start_prefill(tracked, decision, now_s)]

    def _choose(self, tracked: Tracked, cluster: ClusterView, now_s: float) -> Decision:
        decision = self._ask(self.policy.decide, fall_back, tracked.request, cluster)
        may_refuse = self.limits.reject_late and not tracked.retries
        if may_refuse and late_by_s(decision, tracked.request, now_s):
            return refused(decision)
        return decision

    def _ask(
        self,
        policy: Callable[[RequestView, ClusterView], Answer],
        instead: Callable[[RequestView, ClusterView], Answer],
        request: RequestView,
        cluster: ClusterView,
    ) -> Answer:
        try:
            return policy(request, cluster)
        except InvariantViolation:
            raise
        except Exception:  # noqa: BLE001 - a bug in a policy must not lose the request
            self.policy_failures += 1
            return instead(request, cluster)

    def _start_prefill(self, tracked: Tracked, decision: Decision, now_s: float) -> Action:
        node_id = decision.prefill_node_id
        assert node_id is not None
        node = self.ledger.nodes[node_id]
        request = tracked.request
        self._move(tracked, Trigger.TO_PREFILL)
        # A policy that failed, and its fall-back, estimate nothing.
        execute_s = decision.estimate.execute_s or execute_on_prefill_s(request, node.view)
        entry = prefill_entry(self._next_dispatch(), request, node_id, float("inf"))
        node.add_prefill(entry, now_s, execute_s)
        tracked.node_id, tracked.entry = node_id, entry
        return StartPrefill(request.request_id, node_id, entry.dispatch_id)

    def _start_deflected(self, tracked: Tracked, decision: Decision, now_s: float) -> Action:
        node_id, plan = decision.decode_node_id, decision.plan
        assert node_id is not None
        node = self.ledger.nodes[node_id]
        request = tracked.request
        self._move(tracked, Trigger.TO_DEFLECTED)
        entry = prefill_entry(self._next_dispatch(), request, node_id, request.slo.tbt_s)
        is_limited = tracked.declined < DECLINED_MAX
        limit = backlog_tokens_max(request, node.view) if is_limited else UNLIMITED
        node.add_prefill(entry, now_s, decision.estimate.execute_s)
        tracked.node_id, tracked.entry = node_id, entry
        chunks = plan.chunks if plan is not None and decision.execute_plan else ()
        target_s, dispatch_id = request.slo.tbt_s, entry.dispatch_id
        return StartDeflected(request.request_id, node_id, dispatch_id, target_s, chunks, limit)

    def _start_decode(self, tracked: Tracked, now_s: float) -> list[Action]:
        request = tracked.request
        cluster = self.ledger.cluster(now_s, tracked.index, tracked.without)
        node_id = self._ask(self.policy.pick_decode, fall_back_decode, request, cluster)
        if node_id is None:
            self._close(tracked, Trigger.FAIL, now_s)
            return [AnswerError(request.request_id, 503, Reason.NO_NODE)]
        self._move(tracked, Trigger.TO_DECODE)
        node = self.ledger.nodes[node_id]
        entry = decode_entry(self._next_dispatch(), request)
        node.add_decode(entry)
        source = self.ledger.nodes[tracked.prefill_id].view
        kv_bytes = transfer_bytes(request, source, node.view)
        book_transfer(source, node.view, kv_bytes, now_s)
        tracked.node_id, tracked.entry = node_id, entry
        return [StartDecode(request.request_id, node_id, entry.dispatch_id, tracked.prefill_id)]

    # --- bookkeeping -------------------------------------------------------------------------

    def _next_dispatch(self) -> int:
        return next(self._dispatch_ids)

    def _move(self, tracked: Tracked, trigger: Trigger) -> None:
        after = advance(tracked.state, trigger)
        if tracked.state is State.HELD:
            self._held.drop(tracked)
        self.counts[tracked.state] -= 1
        self.counts[after] += 1
        tracked.state = after

    def _unbook(self, tracked: Tracked, now_s: float) -> None:
        if tracked.entry is not None:
            self.ledger.nodes[tracked.node_id].end(tracked.entry, now_s)
            tracked.entry = None

    def _close(self, tracked: Tracked, trigger: Trigger, now_s: float) -> None:
        self._move(tracked, trigger)
        self._unbook(tracked, now_s)
        del self._live[tracked.request.request_id]
