"""Runs a simulated node at wall-clock pace: one timer, always set to the node's next event.

The node's own times are absolute, so a timer that fires late delays what the client sees of one
step and nothing after it. How late the latest was is kept (`late_s_max`): beyond a few milliseconds
the machine is too slow for the cluster it plays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from spillway.clock import Clock
from spillway.core.errors import InvariantViolation, NodeError
from spillway.core.events import NodeState
from spillway.fakeengine.flight import Flight
from spillway.fakeengine.metrics import EngineMetrics
from spillway.sim.node import SimNode
from spillway.sim.residents import Finished, Job, Outcome, Preempted, PrefillDone, Resident, Tokens

# Event loops round timers to whole milliseconds; a timer that is early by less is taken as due.
TIMER_EARLY_S = 0.001


class PacedNode:
    """A `SimNode` that moves by itself and tells each flight what happens to it.

    changed: called after anything that may change the node's report.
    stopped: no time passes any more: the engine shuts down, or the node broke an invariant.
    """

    def __init__(
        self, node: SimNode, clock: Clock, metrics: EngineMetrics, changed: Callable[[], None]
    ) -> None:
        self._node = node
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._flights: dict[str, Flight] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due_s = inf
        self._reached_s = clock.now_s()
        self.stopped = False

    @property
    def flights(self) -> int:
        """Return how many requests are under way."""
        return len(self._flights)

    def now_s(self) -> float:
        """Return the clock's time, or the node's if a timer let it run a little ahead."""
        return max(self._clock.now_s(), self._reached_s)

    def state(self) -> NodeState:
        return self._node.state(self.now_s())

    def submit(
        self, flight: Flight, job: Job, submit: Callable[[Job, float], Resident]
    ) -> Resident:
        """Give a request to the node; `submit` is one of the node's own submit methods.

        Raises NodeError when the node could never hold it, or has stopped.
        """
        if self.stopped:
            raise NodeError("the engine has stopped")
        resident = submit(job, self._advance())
        self._flights[job.request_id] = flight
        self._settle()
        return resident

    def abort(self, request_id: str) -> None:
        """Stop a request at once, whatever its state; held KV is freed. Unknown ids: nothing."""
        if not self.stopped:
            now_s = self._advance()
            self._flights.pop(request_id, None)
            self._node.abort(request_id, now_s)
            self._settle()

    def release_kv(self, request_id: str) -> None:
        """Free the KV of a prefilled request."""
        if not self.stopped:
            self._node.release_kv(request_id, self._advance())
            self._settle()

    def stop(self, reason: str) -> None:
        """Let no more time pass and fail every flight with `reason`. Idempotent."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        flights, self._flights = self._flights, {}
        for flight in flights.values():
            flight.fail(reason)

    # --- the timer -----------------------------------------------------------------------------

    def _on_timer(self) -> None:
        late_s = self._clock.now_s() - self._timer_due_s
        self._timer, self._timer_due_s = None, inf
        self._metrics.late_s_max = max(self._metrics.late_s_max, late_s)
        try:
            self._advance()
        except InvariantViolation as error:
            self.stop(f"the simulated node broke: {error}")
            raise
        self._settle()

    def _advance(self) -> float:
        """Bring the node to the present, pass on what came of it, and return that time."""
        now_s = self._clock.now_s()
        due_s = self._node.next_event_s()
        if due_s - now_s < TIMER_EARLY_S:
            now_s = max(now_s, due_s)
        self._reached_s = now_s = max(now_s, self._reached_s)
        for outcome in self._node.advance(now_s):
            self._tell(outcome)
        return now_s

    def _settle(self) -> None:
        """Set the timer to the node's next event and note that its report may have changed."""
        due_s = self._node.next_event_s()
        if due_s != self._timer_due_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_due_s = due_s
            delay_s = max(0.0, due_s - self._clock.now_s())
            self._timer = None if due_s == inf else self._loop.call_later(delay_s, self._on_timer)
        self._changed()

    def _tell(self, outcome: Outcome) -> None:
        name = outcome.resident.request_id
        flight = self._flights.get(name)
        if flight is None:
            raise InvariantViolation(f"node outcome for a request unknown here: {name}")
        match outcome:
            case Tokens(_, at_s, tokens):
                flight.add_tokens(tokens, at_s)
            case Finished(resident, _):
                del self._flights[resident.request_id]
                flight.finish()
            case PrefillDone(resident, at_s):
                del self._flights[resident.request_id]
                # A prefill leg answers with the one token its last step sampled.
                flight.add_tokens(1, at_s)
                flight.finish()
            case Preempted():
                self._metrics.preemptions += 1
            case _:
                pass  # the first token also comes as `Tokens`
