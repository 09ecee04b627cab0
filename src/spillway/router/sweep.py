"""Looks, every `sweep_s`, at everything that may be past its time.

Where our own loop has stood still, what waits for others is given as much time more, and is judged
only after the sockets have been read: timers may come before what arrived meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from spillway.router.fleet import Fleet
from spillway.router.heartbeat import LOOK_S
from spillway.router.http_server import Front
from spillway.router.intake import Intake
from spillway.router.shell import Shell
from spillway.router.silence import excuse


class Sweep:
    """The time-outs of one router. Looks once when it is made."""

    def __init__(self, shell: Shell, fronts: Sequence[Front], intake: Intake, fleet: Fleet) -> None:
        self._shell = shell
        self._fronts = fronts
        self._intake = intake
        self._fleet = fleet
        self._lost_s = 0.0
        self._later: asyncio.TimerHandle | None = None
        self.look()

    def look(self) -> None:
        """Judge who is late, now or a moment after the loop has stood still."""
        shell = self._shell
        now_s = shell.clock.now_s()
        for front in self._fronts:
            front.now_s = now_s
        for pool in shell.pools.values():
            pool.sweep(now_s)
        before_s, self._lost_s = self._lost_s, shell.heartbeat.lost_s()
        if self._lost_s <= before_s:
            self._judge()
            return
        self._excuse(self._lost_s - before_s, now_s)
        if self._later is None:  # a loop that keeps on stopping does not put it off for ever
            self._later = asyncio.get_running_loop().call_later(LOOK_S, self._judge)

    def close(self) -> None:
        """Judge nobody any more."""
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _excuse(self, lost_s: float, now_s: float) -> None:
        for front in self._fronts:
            for conn in front.connections:
                conn.deadline_s += lost_s
        excuse(self._shell.live, lost_s, now_s)
        self._intake.excuse(lost_s, now_s)
        if self._shell.gate is not None:
            self._shell.gate.excuse(lost_s)

    def _judge(self) -> None:
        self.close()
        now_s = self._shell.clock.now_s()
        for front in self._fronts:
            for conn in [conn for conn in front.connections if conn.deadline_s < now_s]:
                conn.expire()
        self._shell.sweep(now_s)
        self._intake.sweep(now_s)
        self._fleet.sweep()
