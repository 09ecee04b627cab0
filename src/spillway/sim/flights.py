"""A request on its way through a simulated cluster, and the record it leaves."""

from __future__ import annotations

from math import inf

from spillway.core.prefixes import Chain
from spillway.core.types import NodeId, RequestView
from spillway.sim.port import Port
from spillway.sim.residents import Job, Resident
from spillway.wire.records import RequestRecord, TtftParts


class Flight:
    """One request between its arrival and its record.

    dispatch_id: of the order that holds; whatever an older order still brings is ignored.
    prefill: its prefill leg, if any; decode: where its tokens came from.
    held_at: the prefill node that keeps its KV until it has been pulled.
    outcome: "" while it is under way.
    blocks, block_tokens: the chain of its prompt's full leading blocks (`core.prefixes`).
    """

    __slots__ = (
        "block_tokens",
        "blocks",
        "decided_s",
        "decode",
        "dispatch_id",
        "error",
        "finish_s",
        "held_at",
        "index",
        "kv_bytes_moved",
        "moving",
        "node_id",
        "outcome",
        "output_tokens",
        "prefill",
        "reason",
        "request",
        "route",
    )

    def __init__(
        self,
        index: int,
        request: RequestView,
        output_tokens: int,
        blocks: Chain = (),
        block_tokens: int = 0,
    ) -> None:
        self.index = index
        self.request = request
        self.output_tokens = output_tokens
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.decided_s = -1.0
        self.route = ""
        self.reason = ""
        self.dispatch_id = 0
        self.node_id: NodeId = ""
        self.prefill: Resident | None = None
        self.decode: Resident | None = None
        self.held_at: Port | None = None
        self.moving = False
        self.kv_bytes_moved = 0
        self.outcome = ""
        self.finish_s: float | None = None
        self.error = ""

    @property
    def streaming(self) -> bool:
        """Say whether the client has seen a token."""
        return self.decode is not None and self.decode.first_token_s is not None


def prefill_job(flight: Flight) -> Job:
    """Return the order to prefill a flight's prompt for another node's decode."""
    request = flight.request
    return Job(
        request.request_id,
        request.prompt_tokens,
        1,
        inf,
        flight.dispatch_id,
        (),
        flight.blocks,
        flight.block_tokens,
    )


def decode_job(flight: Flight, chunks: tuple[tuple[int, int], ...] = ()) -> Job:
    """Return the order to decode a flight, after its prompt or in place."""
    request = flight.request
    return Job(
        request.request_id,
        request.prompt_tokens,
        flight.output_tokens,
        request.slo.tbt_s,
        flight.dispatch_id,
        chunks,
        flight.blocks,
        flight.block_tokens,
    )


def record_of(flight: Flight) -> RequestRecord:
    """Return what happened to a request, once nothing more will.

    Tokens and gaps are the engine's: an abort takes effect at a step's end, so a client that left
    may be billed a token or two that it never saw. A first token that came after it left is none.
    """
    request, decode = flight.request, flight.decode
    tokens, gaps, gaps_late, gap_mean_s, gap_max_s = 0, 0, 0, 0.0, 0.0
    ttft_s, parts = None, None
    first_s = decode.first_token_s if decode is not None else None
    if decode is not None and first_s is not None:
        tokens = decode.generated_tokens
        if flight.finish_s is None or first_s <= flight.finish_s:
            ttft_s, parts = first_s - request.arrival_s, _parts(flight, decode, first_s)
        if tokens > 1:
            assert decode.last_token_s is not None
            gaps, gaps_late, gap_max_s = tokens - 1, decode.gaps_late, decode.gap_max_s
            gap_mean_s = (decode.last_token_s - first_s) / gaps
    return RequestRecord(
        request_id=request.request_id,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=tokens,
        slo_ttft_s=request.slo.ttft_s,
        slo_tbt_s=request.slo.tbt_s,
        outcome=flight.outcome,
        class_name=request.class_name,
        route=flight.route,
        reason=flight.reason,
        ttft_s=ttft_s,
        gaps=gaps,
        gaps_late=gaps_late,
        gap_mean_s=gap_mean_s,
        gap_max_s=gap_max_s,
        finish_s=flight.finish_s,
        kv_bytes_moved=flight.kv_bytes_moved,
        parts=parts,
        error=flight.error,
    )


def _parts(flight: Flight, decode: Resident, first_s: float) -> TtftParts:
    """Return where the first token's time went: by the prefill path, or in place."""
    arrival_s = flight.request.arrival_s
    pull_s, arrived_s, admitted_s = decode.pull_s, decode.kv_arrived_s, decode.admitted_s
    prefill = flight.prefill
    if pull_s is None or arrived_s is None or admitted_s is None or prefill is None:
        assert decode.started_s is not None
        return TtftParts(queue=decode.started_s - arrival_s, execute=first_s - decode.started_s)
    assert prefill.started_s is not None
    assert prefill.prefill_done_s is not None
    return TtftParts(
        queue=prefill.started_s - arrival_s,
        execute=prefill.prefill_done_s - prefill.started_s,
        transfer=arrived_s - pull_s,
        admission=pull_s - prefill.prefill_done_s + admitted_s - arrived_s,
        first_step=first_s - admitted_s,
    )
