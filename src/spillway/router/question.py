"""A question of the router's own to a node: answered within a time, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from spillway.router.fetch import Fetch
from spillway.router.heartbeat import Heartbeat, Timer
from spillway.router.http_client import Fault, ResponseHead
from spillway.router.pool import NodePool


class Question(Fetch):
    """One request whose answer, or the lack of one, goes to a callback.

    The callback gets (status, content); the status is 0 with a fault's name as content.
    heartbeat: of a loop whose standstills are not to count for the node; None counts them.
    """

    __slots__ = ("_answered", "_heartbeat", "_timer")

    def __init__(
        self,
        answered: Callable[[int, bytes], None],
        bytes_max: int,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        super().__init__(bytes_max)
        self._answered = answered
        self._heartbeat = heartbeat
        self._timer: Timer | asyncio.TimerHandle | None = None

    def ask(self, pool: NodePool, target: bytes, lines: bytes, timeout_s: float) -> None:
        """Send the question; an answer that takes longer than `timeout_s` is none."""
        self.leg = pool.get(self, target, lines)
        self._wait(timeout_s)

    def order(self, pool: NodePool, target: bytes, lines: bytes, timeout_s: float) -> None:
        """Do the same by POST, without a body."""
        self.leg = pool.post(self, target, lines, b"")
        self._wait(timeout_s)

    def cancel(self) -> None:
        """Forget the question; the callback is not called."""
        if self._timer is not None:
            self._timer.cancel()
        if self.leg is not None:
            self.leg.abort()

    def done(self, head: ResponseHead, content: bytes) -> None:
        self._end(head.status, content)

    def failed(self, fault: Fault) -> None:
        self._end(0, fault.value.encode())

    def _wait(self, timeout_s: float) -> None:
        if self._heartbeat is None:
            self._timer = asyncio.get_running_loop().call_later(timeout_s, self._give_up)
        else:
            self._timer = Timer(self._heartbeat, timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self.leg is not None:
            self.leg.fail(Fault.SILENT)

    def _end(self, status: int, content: bytes) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.leg = None
        self._answered(status, content)
