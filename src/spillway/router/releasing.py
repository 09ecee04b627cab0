"""Has prefilled KV freed that will never be fetched, so that it does not wait for its lease's end.

KV is an orphan when its request ends, or is prefilled again, before any byte of its handover was
sent to a decode node: nobody else knows that it exists, so nobody can be fetching it. One short
order to the prefill node (`wire.release`) is all there is: it is not repeated and nobody waits for
it, since the lease ends what it did not reach.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from spillway.core.types import NodeId
from spillway.router.fetch import Fetch
from spillway.router.http_client import Fault, ResponseHead
from spillway.router.relay import Exchange
from spillway.wire.kvparams import held_kv
from spillway.wire.release import STATUS_TAKEN, release_target

if TYPE_CHECKING:
    from spillway.router.shell import Shell

ANSWER_BYTES_MAX = 4096
ANSWER_S_MAX = 0.5  # a node that is well answers in milliseconds
ORDERS_MAX = 64  # under way at a time; beyond that KV is left to its lease
TAKEN, LEFT = "taken", "left_to_lease"


class Releasing:
    """Orders prefill nodes to free KV.

    under_way: how many orders have not been answered.
    """

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self.under_way = 0
        key = shell.settings.engine_api_key
        self._lines = b"authorization: Bearer %b\r\n" % key.encode() if key else b""

    def give_up(self, exchange: Exchange) -> None:
        """Forget the KV of a request, and have it freed if no decode node was told of it."""
        kv_params, exchange.kv_params = exchange.kv_params, b""
        leg = exchange.leg
        if not kv_params or (leg is not None and not leg.is_connecting):
            return
        shell, node_id = self._shell, exchange.kv_node_id
        pool = shell.reserving.pools.get(node_id)
        said = shell.last_reports.get(node_id)
        target = release_target(held_kv(kv_params))
        can_release = pool is not None and said is not None and said.releases
        if pool is None or not can_release or not target or self.under_way >= ORDERS_MAX:
            shell.metrics.releases[node_id, LEFT] += 1
            return
        self.under_way += 1
        order = Order(self, node_id)
        order.leg = pool.post(order, target.encode(), self._lines, b"")

    def ended(self, node_id: NodeId, kind: str) -> None:
        """An order has come to its end."""
        self.under_way -= 1
        self._shell.metrics.releases[node_id, kind] += 1


class Order(Fetch):
    """One order, and the end of it."""

    __slots__ = ("_node_id", "_owner", "_timer")

    def __init__(self, owner: Releasing, node_id: NodeId) -> None:
        super().__init__(ANSWER_BYTES_MAX)
        self._owner = owner
        self._node_id = node_id
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(ANSWER_S_MAX, self._late)

    def done(self, head: ResponseHead, content: bytes) -> None:
        self._end(TAKEN if head.status == STATUS_TAKEN else f"http_{head.status}")

    def failed(self, fault: Fault) -> None:
        self._end(fault.value)

    def _late(self) -> None:
        if self.leg is not None:
            self.leg.fail(Fault.SILENT)

    def _end(self, kind: str) -> None:
        self._timer.cancel()
        self.leg = None
        self._owner.ended(self._node_id, kind)
