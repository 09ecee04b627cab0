"""Node reports that cost nothing while nobody looks.

Each node reports at the ticks 0, period, 2·period, ... No event is scheduled for that. A report
matters only when a decision reads it, so it is made up then; and since between two changes of a
node its state at any moment has a closed form, it can be made up afterwards. The one thing to do in
time is a snapshot just before a node changes, if a tick has passed since its last one.

Reports may be late by `delay_s` and may be lost. A node that is idle and unchanged says nothing new
and is heard again only when its last word has reached half the age the dispatcher accepts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from math import inf, isfinite
from random import Random

from spillway.core.errors import ConfigError
from spillway.core.events import NodeReported, NodeState
from spillway.sim.port import Port
from spillway.sim.snapshot import node_state


class Reports:
    """The reporting of a cluster's nodes.

    period_s: 0 for nodes that never report (stock engines), `active` for others. tell: what the
        dispatcher is told.
    materialised: work count; told, lost: reports that arrived and that did not.
    needed_tick: the oldest tick whose state may still be read; earlier ones are not kept.
    """

    def __init__(
        self,
        *,
        period_s: float,
        delay_s: float,
        loss_frac: float,
        age_max_s: float,
        rng: Random,
        tell: Callable[[NodeReported, float], object],
    ) -> None:
        for name, value in (("period_s", period_s), ("delay_s", delay_s)):
            if not (isfinite(value) and value >= 0):
                raise ConfigError(f"reports: {name} is {value}; it must be finite and >= 0")
        if not 0 <= loss_frac <= 1:
            raise ConfigError(f"reports: loss_frac is {loss_frac}; it must be between 0 and 1")
        self.active = period_s > 0
        self.period_s = period_s
        self.delay_s = delay_s
        self.loss_frac = loss_frac
        self.materialised = 0
        self.told = 0
        self.lost = 0
        self._refresh_s = age_max_s / 2
        self._rng = rng
        self._tell = tell
        self.needed_tick = 0
        self._looked_at_tick = -1

    def before_change(self, port: Port, now_s: float) -> None:
        """Keep the state at the last tick before `now_s`; call it when now_s >= next_tick_s."""
        period_s, needed_tick = self.period_s, self.needed_tick
        tick = int(now_s / period_s)
        port.quiet = False
        if tick < needed_tick:  # no decision will be made before that
            port.next_tick_s = needed_tick * period_s
            return
        port.next_tick_s = (tick + 1) * period_s
        # With a delay, earlier ticks may still be on their way when the next decision is made.
        oldest = int(max(0.0, now_s - self.delay_s) / period_s) if self.delay_s else tick
        snapshots = port.snapshots
        for each in range(max(port.tick + 1, oldest, needed_tick), tick + 1):
            snapshots.append((each, self._state(port, each, now_s)))
        port.tick = tick
        while len(snapshots) > 1 and snapshots[1][0] <= oldest:
            snapshots.popleft()

    def deliver(self, ports: Iterable[Port], now_s: float) -> None:
        """Tell the dispatcher what has reached it by `now_s`. Called before each decision."""
        tick = self._tick_seen(now_s)
        if tick <= self._looked_at_tick:
            return
        self._looked_at_tick = tick
        refresh_s = self._refresh_s
        for port in ports:
            if port.quiet and now_s - port.heard_s < refresh_s:
                continue
            if not port.alive or tick <= port.heard_tick:
                continue
            state = self._latest(port, tick, now_s)
            if state is None:
                continue
            port.heard_tick = tick
            if self.loss_frac and self._rng.random() < self.loss_frac:
                self.lost += 1
                continue
            self.told += 1
            port.heard_s = state.taken_at_s
            self._tell(NodeReported(state), now_s)

    def look_next(self, at_s: float) -> None:
        """The next decision is made at `at_s`: what it cannot read need not be kept until then."""
        self.needed_tick = self._tick_seen(at_s) if at_s < inf else sys.maxsize

    def _tick_seen(self, now_s: float) -> int:
        """Return the last tick whose report can have arrived by `now_s`, -1 when there is none."""
        return int((now_s - self.delay_s) / self.period_s) if now_s >= self.delay_s else -1

    def restart(self, port: Port, now_s: float) -> None:
        """Forget what a node was going to say before it died."""
        port.snapshots.clear()
        port.quiet = False
        port.due_s = inf
        if self.active:
            port.tick = port.heard_tick = int(now_s / self.period_s)
            port.next_tick_s = (port.tick + 1) * self.period_s

    def _latest(self, port: Port, tick: int, now_s: float) -> NodeState | None:
        """Return the last state by `tick` that has not been told, None when there is none."""
        snapshots = port.snapshots
        if port.tick < tick:
            # The node has not changed since: its state then can be told now.
            snapshots.clear()
            port.tick = tick
            port.quiet = port.node.idle
            # A quiet node must be noticed at its very next change, whatever the tick.
            port.next_tick_s = 0.0 if port.quiet else (tick + 1) * self.period_s
            return self._state(port, tick, now_s)
        found = None
        while snapshots and snapshots[0][0] <= tick:
            at, state = snapshots.popleft()
            if at > port.heard_tick:
                found = state
        return found

    def _state(self, port: Port, tick: int, now_s: float) -> NodeState:
        self.materialised += 1
        return node_state(port.node, min(tick * self.period_s, now_s))
