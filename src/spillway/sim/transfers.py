"""KV on its way from a prefill node to the decode node that pulls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spillway.sim.flights import Flight
from spillway.sim.kernel import Kernel
from spillway.sim.port import Port


@dataclass(slots=True)
class Transfer:
    """One pull. left_s: when the last byte leaves the prefill node."""

    flight: Flight
    dispatch_id: int
    source: Port
    to: Port
    kv_bytes: int
    left_s: float

    @property
    def holds(self) -> bool:
        """Say whether the order it serves still stands."""
        flight = self.flight
        return not flight.outcome and flight.moving and flight.dispatch_id == self.dispatch_id


class Transfers:
    """Every pull under way: each takes its turn on the links of both nodes (`link.py`).

    landed: called with a flight whose KV has come to the node that pulls it.
    """

    def __init__(self, kernel: Kernel, landed: Callable[[Flight, Port], None]) -> None:
        self._kernel = kernel
        self._landed = landed

    def start(self, flight: Flight, source: Port, to: Port) -> None:
        """Queue the KV of a flight for which `to` has room.

        As with vLLM's NIXL connector, leading blocks that the decode node has cached stay away.
        """
        now_s = self._kernel.now_s
        pulled = to.node.members[flight.request.request_id]
        kv_bytes = pulled.remaining_tokens * source.spec.profile.kv_bytes_per_token
        flight.kv_bytes_moved += kv_bytes
        begin_s, left_s = source.link.take(now_s, kv_bytes, to.spec)
        transfer = Transfer(flight, flight.dispatch_id, source, to, kv_bytes, left_s)
        if begin_s > now_s:
            self._kernel.at(begin_s, self._enter, transfer)
        else:
            self._enter(transfer)

    def _enter(self, transfer: Transfer) -> None:
        """The prefill node begins to send: the transfer joins the decode node's queue."""
        if transfer.holds:
            source, to = transfer.source, transfer.to
            _, end_s = to.link.take(self._kernel.now_s, transfer.kv_bytes, source.spec)
            self._kernel.at(max(transfer.left_s, end_s), self._arrive, transfer)

    def _arrive(self, transfer: Transfer) -> None:
        if transfer.holds:
            self._landed(transfer.flight, transfer.to)
