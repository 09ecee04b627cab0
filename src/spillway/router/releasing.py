"""Has prefilled KV freed that will never be fetched, so that it does not wait for its lease's end.

KV is an orphan when its request ends, or is prefilled again, before any byte of its handover was
sent to a decode node: nobody else knows that it exists, so nobody can be fetching it. One short
order to the prefill node (`wire.release`) is all there is: it is not repeated and nobody waits for
it, since the lease ends what it did not reach.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from spillway.core.types import NodeId
from spillway.router.question import Question
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
        question = Question(partial(self._ended, node_id), ANSWER_BYTES_MAX)
        question.order(pool, target.encode(), self._lines, ANSWER_S_MAX)

    def _ended(self, node_id: NodeId, status: int, content: bytes) -> None:
        """Count what came of an order; a status of 0 comes with a fault's name."""
        self.under_way -= 1
        kind = content.decode() if status == 0 else f"http_{status}"
        self._shell.metrics.releases[node_id, TAKEN if status == STATUS_TAKEN else kind] += 1
