"""For how long a leg may say nothing before it is given up."""

from __future__ import annotations

from collections.abc import Mapping

from spillway.core.types import NodeId, RequestId
from spillway.router.http_client import Fault
from spillway.router.relay import Exchange
from spillway.router.settings import RouterSettings


def overdue(exchange: Exchange, settings: RouterSettings, now_s: float) -> Fault | None:
    """Return why the leg of a request is to be given up now, or None.

    Bytes since the last look set its clock back. A client that does not read is waited for.
    """
    if exchange.leg is None or exchange.paused:
        return None
    if now_s >= exchange.view.deadline_s and not exchange.started:
        return Fault.TOO_LATE
    if exchange.reads != exchange.reads_seen:
        exchange.reads_seen = exchange.reads
        exchange.leg_since_s = now_s
        return None
    if exchange.started:
        limit_s = settings.stream_silence_s
    elif exchange.is_prefilling:
        limit_s = settings.prefill_s
    else:
        limit_s = settings.first_byte_s
    return Fault.SILENT if now_s - exchange.leg_since_s > limit_s else None


def excuse(live: Mapping[RequestId, Exchange], lost_s: float, now_s: float) -> None:
    """Take off what our own loop stood still from the silence of every leg."""
    for exchange in live.values():
        exchange.leg_since_s = min(exchange.leg_since_s + lost_s, now_s)


def give_up_waiting(live: Mapping[RequestId, Exchange], node_id: NodeId) -> None:
    """Move on what waits for the first byte of a node that will not send it."""
    for exchange in list(live.values()):
        if exchange.node_id == node_id and not exchange.started and exchange.leg is not None:
            exchange.leg.fail(Fault.SILENT)
