"""Carries out the dispatcher's orders on simulated nodes and feeds the facts back.

This is the simulator's half of the bargain: the same `Dispatcher` that the router drives, driven
here by a kernel in virtual time. It only translates. An order becomes a submission or a transfer;
what a node says becomes a fact; what a fact orders is done at once, or `order_delay_s` later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

from spillway.core.decide import Route
from spillway.core.dispatcher import Dispatcher
from spillway.core.errors import InvariantViolation, NodeError
from spillway.core.events import (
    AbortOnNode,
    Action,
    AnswerError,
    ClientLeft,
    FirstToken,
    LegFailed,
    LogDecision,
    NodeBack,
    NodeLost,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    SetTimer,
    StartDecode,
    StartDeflected,
    StartPrefill,
    TimerFired,
)
from spillway.core.prefixes import PrefixIndex
from spillway.core.types import NodeId, RequestId
from spillway.sim.faults import Fault, NodeDies
from spillway.sim.flights import Flight, decode_job, prefill_job
from spillway.sim.kernel import Kernel
from spillway.sim.node import SimNode
from spillway.sim.port import Port
from spillway.sim.reports import Reports
from spillway.sim.residents import (
    Finished,
    FirstTokenAt,
    Job,
    Outcome,
    PrefillDone,
    PullStarted,
    Resident,
)
from spillway.sim.routers import Routers
from spillway.sim.transfers import Transfers

AT_ONCE = frozenset({LogDecision, AnswerError, SetTimer})  # orders that reach no node
WAKE_RANK = 1  # a step that ends now sees what arrives now


class Cluster:
    """A pool of simulated nodes under one dispatcher.

    done: called with each flight that has reached its end. A cancelled or failed stream may get a
        few figures more until the step under way ends.
    prefixes: what the router remembers of prompts sent where; None when it does not.
    """

    def __init__(
        self,
        kernel: Kernel,
        dispatcher: Dispatcher | Routers,
        nodes: Sequence[SimNode],
        reports: Reports,
        *,
        done: Callable[[Flight], None],
        order_delay_s: float = 0.0,
        prefixes: PrefixIndex | None = None,
    ) -> None:
        self.kernel = kernel
        self.dispatcher = dispatcher
        self.routers = dispatcher if isinstance(dispatcher, Routers) else None
        self.ports: dict[NodeId, Port] = {node.node_id: Port(node) for node in nodes}
        self.reports = reports
        self.flights: dict[RequestId, Flight] = {}
        self.order_delay_s = order_delay_s
        self.prefixes = prefixes
        self.preemptions = 0
        self.on_decision: Callable[[LogDecision], None] | None = None
        self._done = done
        self._transfers = Transfers(kernel, self._landed)
        self._orders: dict[type, Callable[[Any], None]] = {
            LogDecision: self._log,
            StartPrefill: self._start_prefill,
            StartDecode: self._start_decode,
            StartDeflected: self._start_deflected,
            AbortOnNode: self._abort,
            AnswerError: self._answer_error,
            SetTimer: self._set_timer,
        }
        self._timer_s = inf
        self._next_s = 0.0  # the next arrival, as far as it is known
        if not reports.active:
            for port in self.ports.values():
                port.next_tick_s = inf

    # --- what happens ------------------------------------------------------------------------

    def arrive(self, flight: Flight, next_s: float = 0.0) -> None:
        """A request arrives now, and the one after it not before `next_s`."""
        now_s = self.kernel.now_s
        if self.reports.active:
            self.reports.deliver(self.ports.values(), now_s)
        self._next_s = next_s
        request = flight.request
        self.flights[request.request_id] = flight
        self._obey(self.dispatcher.handle(RequestArrived(request), now_s))
        self._look_ahead()

    def leave(self, request_id: RequestId) -> None:
        """A client goes away now, if it has not been answered yet."""
        flight = self.flights.get(request_id)
        if flight is not None:
            actions = self.dispatcher.handle(ClientLeft(request_id), self.kernel.now_s)
            self._obey(actions)
            self._end(flight, "cancelled")

    def inject(self, fault: Fault) -> None:
        """Schedule a fault."""
        port = self.ports.get(fault.node_id)
        if port is None:
            raise InvariantViolation(f"{fault}: there is no such node")
        if isinstance(fault, NodeDies):
            self.kernel.at(fault.at_s, self._die, port)
            if fault.back_s < inf:
                self.kernel.at(fault.back_s, self._revive, port)
        else:
            self.kernel.at(fault.at_s, partial(self._rescale, port), fault.scale_frac)
            if fault.until_s < inf:
                normal_frac = port.node.world.scale_frac
                self.kernel.at(fault.until_s, partial(self._rescale, port), normal_frac)

    def drift(self, drift_frac: float) -> None:
        """From now on every step costs `drift_frac` times what it would have cost at first."""
        for port in self.ports.values():
            port.node.world.drift_frac = drift_frac
            self._rescale(port, port.node.world.scale_frac)

    # --- nodes -------------------------------------------------------------------------------

    def _changed(self, port: Port) -> None:
        """Wake the node when it is next due. Called after everything that may move that moment."""
        due_s = port.segment.end_s
        if due_s != port.due_s:
            port.due_s = due_s
            if not port.segment.steps and due_s < inf:
                self._wake(port)  # an idle node starts at once
            elif due_s < inf:
                self.kernel.at(due_s, self._wake, port, WAKE_RANK)

    def _wake(self, port: Port) -> None:
        now_s = port.due_s
        if now_s != self.kernel.now_s:
            return  # it was woken earlier in the meantime
        if now_s >= port.next_tick_s:
            self.reports.before_change(port, now_s)
        port.due_s = inf
        for outcome in port.node.advance(now_s):
            self._hear(port, outcome)
        due_s = port.segment.end_s
        if due_s != port.due_s:
            port.due_s = due_s
            self.kernel.at(due_s, self._wake, port, WAKE_RANK)

    def _hear(self, port: Port, outcome: Outcome) -> None:
        """Tell the dispatcher what a node said, and do what follows."""
        resident = outcome.resident
        request_id = resident.request_id
        flight = self.flights.get(request_id)
        if flight is None or flight.dispatch_id != resident.job.dispatch_id:
            return  # an order that no longer holds; its resident is being aborted
        handle, now_s = self.dispatcher.handle, self.kernel.now_s
        kind = type(outcome)
        if kind is FirstTokenAt:
            self._obey(handle(FirstToken(request_id), now_s))
        elif kind is Finished:
            handle(RequestFinished(request_id, resident.generated_tokens), now_s)
            self._end(flight, "finished")
        elif kind is PrefillDone:
            flight.held_at = port
            self._obey(handle(PrefillFinished(request_id), now_s))
        elif kind is PullStarted:
            if flight.held_at is not None and flight.moving:  # else the KV is gone
                self._transfers.start(flight, flight.held_at, port)
        else:
            self.preemptions += 1

    # --- orders ------------------------------------------------------------------------------

    def _obey(self, actions: list[Action]) -> None:
        orders, delay_s = self._orders, self.order_delay_s
        for action in actions:
            kind = type(action)
            if delay_s and kind not in AT_ONCE:
                self.kernel.at(self.kernel.now_s + delay_s, orders[kind], action)
            else:
                orders[kind](action)

    def _log(self, action: LogDecision) -> None:
        flight = self.flights[action.request.request_id]
        decision = action.decision
        flight.decided_s = action.decided_at_s
        flight.route = "" if decision.route is Route.REJECTED else decision.route
        flight.reason = decision.reason
        if self.on_decision is not None:
            self.on_decision(action)

    def _set_timer(self, action: SetTimer) -> None:
        self._timer_s = action.at_s
        self.kernel.at(action.at_s, self._timer_fired, action.at_s)

    def _timer_fired(self, at_s: float) -> None:
        if at_s == self._timer_s:
            self._timer_s = inf
            if self.reports.active:
                self.reports.deliver(self.ports.values(), at_s)
            self._obey(self.dispatcher.handle(TimerFired(), at_s))
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Spare the reports that no decision will read; while requests are held, any may be."""
        if self.reports.active:
            now_s = self.kernel.now_s
            self.reports.look_next(max(now_s, self._next_s) if self._timer_s == inf else now_s)

    def _start_prefill(self, action: StartPrefill) -> None:
        flight = self._take_order(action)
        if flight is not None:
            port = self.ports[action.node_id]
            job = prefill_job(flight)
            flight.prefill = self._submit(flight, port, port.node.submit_prefill, job)

    def _start_deflected(self, action: StartDeflected) -> None:
        flight = self._take_order(action)
        if flight is not None:
            port = self.ports[action.node_id]
            if port.alive and not self._is_granted(action, flight, port.node):
                self._fail_leg(flight, "declined", refused=True, declined=True)
                return
            job = decode_job(flight, action.chunks)
            flight.decode = self._submit(flight, port, port.node.submit_local, job)

    def _is_granted(self, action: StartDeflected, flight: Flight, node: SimNode) -> bool:
        routers = self.routers
        return routers is None or routers.is_granted(action, flight, node, self.kernel.now_s)

    def _start_decode(self, action: StartDecode) -> None:
        flight = self._take_order(action, keep_kv=True)
        if flight is None:
            return
        source, to = flight.held_at, self.ports[action.node_id]
        if source is None or not source.alive:
            self._fail_leg(flight, f"{action.prefill_node_id} lost the KV", kv_lost=True)
        elif not to.alive:
            self._fail_leg(flight, f"{to.node_id} refused the connection", refused=True)
        else:
            flight.moving = True
            flight.decode = self._submit(flight, to, to.node.submit_pull, decode_job(flight))

    def _landed(self, flight: Flight, port: Port) -> None:
        """The KV has come: the decode node may go on, and the prefill node lets go of it."""
        now_s = self.kernel.now_s
        flight.moving = False
        if now_s >= port.next_tick_s:
            self.reports.before_change(port, now_s)
        port.node.kv_arrived(flight.request.request_id, now_s)
        self._changed(port)
        self._release_kv(flight)

    def _abort(self, action: AbortOnNode) -> None:
        self._drop(self.ports[action.node_id], action.request_id)

    def _drop(self, port: Port, request_id: RequestId) -> None:
        now_s = self.kernel.now_s
        if now_s >= port.next_tick_s:
            self.reports.before_change(port, now_s)
        port.node.abort(request_id, now_s)
        self._changed(port)

    def _answer_error(self, action: AnswerError) -> None:
        flight = self.flights[action.request_id]
        flight.error = flight.error or str(action.reason)
        self._end(flight, "failed" if flight.dispatch_id else "rejected")

    # --- legs --------------------------------------------------------------------------------

    def _take_order(
        self, action: StartPrefill | StartDecode | StartDeflected, *, keep_kv: bool = False
    ) -> Flight | None:
        """Make the order the one that holds; None when its request has ended meanwhile."""
        flight = self.flights.get(action.request_id)
        if flight is None:
            return None
        if flight.held_at is not None and not keep_kv:
            self._release_kv(flight)
        flight.moving = False
        flight.dispatch_id = action.dispatch_id
        flight.node_id = action.node_id
        if flight.blocks and self.prefixes is not None:
            self.prefixes.note(action.node_id, flight.blocks, self.kernel.now_s)
        return flight

    def _submit(
        self, flight: Flight, port: Port, submit: Callable[[Job, float], Resident], job: Job
    ) -> Resident | None:
        """Hand a job to a node; one that is dead or too small refuses it."""
        now_s = self.kernel.now_s
        if not port.alive:
            self._fail_leg(flight, f"{port.node_id} refused the connection", refused=True)
            return None
        if now_s >= port.next_tick_s:
            self.reports.before_change(port, now_s)
        try:
            resident = submit(job, now_s)
        except NodeError as error:
            self._fail_leg(flight, str(error), refused=True)
            return None
        self._changed(port)
        return resident

    def _fail_leg(self, flight: Flight, reason: str, **how: bool) -> None:
        """Report a failed leg as an event of its own, so that no order runs inside another."""
        flight.moving = False
        flight.error = reason
        request_id, streaming = flight.request.request_id, flight.streaming
        failed = LegFailed(request_id, flight.node_id, reason, streaming=streaming, **how)
        self.kernel.at(self.kernel.now_s, self._leg_failed, (flight, flight.dispatch_id, failed))

    def _leg_failed(self, item: tuple[Flight, int, LegFailed]) -> None:
        flight, dispatch_id, failed = item
        if not flight.outcome and flight.dispatch_id == dispatch_id:
            self._obey(self.dispatcher.handle(failed, self.kernel.now_s))

    def _release_kv(self, flight: Flight) -> None:
        port = flight.held_at
        flight.held_at = None
        if port is not None and port.alive:
            now_s = self.kernel.now_s
            if now_s >= port.next_tick_s:
                self.reports.before_change(port, now_s)
            port.node.release_kv(flight.request.request_id, now_s)
            self._changed(port)

    def _end(self, flight: Flight, outcome: str) -> None:
        del self.flights[flight.request.request_id]
        flight.outcome = outcome
        if outcome == "finished":
            flight.error = ""  # a leg may have failed on the way
        flight.finish_s = self.kernel.now_s
        if flight.held_at is not None:
            self._release_kv(flight)
        self._done(flight)

    # --- faults ------------------------------------------------------------------------------

    def _die(self, port: Port) -> None:
        """A node loses everything; whoever waits for it finds its connection broken."""
        now_s = self.kernel.now_s
        if not port.alive:
            return
        port.alive = False
        port.due_s = inf
        port.node.fail(now_s)
        if self.prefixes is not None:
            self.prefixes.forget(port.node_id)
        self._obey(self.dispatcher.handle(NodeLost(port.node_id, "died"), now_s))
        for flight in list(self.flights.values()):
            if flight.held_at is port:
                flight.held_at = None
                if flight.moving:
                    self._drop(self.ports[flight.node_id], flight.request.request_id)
                    self._fail_leg(flight, f"{port.node_id} died with the KV", kv_lost=True)
            elif flight.node_id == port.node_id:
                # Until its KV has moved, the node has certainly not started the work.
                self._fail_leg(flight, f"{port.node_id} died", refused=flight.moving)

    def _revive(self, port: Port) -> None:
        if port.alive:
            return
        port.alive = True
        port.link.free_s = self.kernel.now_s  # what it was sending died with it
        self.reports.restart(port, self.kernel.now_s)
        self._obey(self.dispatcher.handle(NodeBack(port.node_id), self.kernel.now_s))

    def _rescale(self, port: Port, scale_frac: float) -> None:
        now_s = self.kernel.now_s
        if now_s >= port.next_tick_s:
            self.reports.before_change(port, now_s)
        port.node.rescale(scale_frac, now_s)
        self._changed(port)
