"""Puts together what the client and the engines measured of the same request.

The client sees one TTFT; each engine knows how long the work lay and took with it. Only durations
are joined, by request id, so no two clocks are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from spillway.fakeengine.records import EngineRecord
from spillway.wire.records import RequestRecord, TtftParts


def join_parts(
    records: Sequence[RequestRecord], engine_records: Iterable[EngineRecord]
) -> list[RequestRecord]:
    """Return `records` with the parts of their TTFT and the KV bytes they moved, where known.

    What no engine accounts for (the network, the router, the wait for an event loop) is counted as
    queue for a deflected prompt and as transfer otherwise, so that the parts add up to the TTFT.
    A retried request has several legs of a kind; the last one that finished counts.
    """
    by_id: dict[str, dict[str, EngineRecord]] = {}
    for one in engine_records:
        if one.outcome == "finished":
            by_id.setdefault(one.request_id, {})[one.leg] = one
    return [_joined(record, by_id.get(record.request_id, {})) for record in records]


def _joined(record: RequestRecord, legs: dict[str, EngineRecord]) -> RequestRecord:
    kv_bytes_moved = sum(leg.kv_bytes_moved for leg in legs.values())
    parts = None if record.ttft_s is None else _parts(record.ttft_s, legs)
    return replace(record, kv_bytes_moved=kv_bytes_moved, parts=parts)


def _parts(ttft_s: float, legs: dict[str, EngineRecord]) -> TtftParts | None:
    whole, prefill, decode = legs.get("whole"), legs.get("prefill"), legs.get("decode")
    if whole is not None:
        execute_s, first_step_s = whole.execute_s or 0.0, whole.first_step_s or 0.0
        return TtftParts(
            queue=max(0.0, ttft_s - execute_s - first_step_s),
            execute=execute_s,
            first_step=first_step_s,
        )
    if prefill is None or decode is None:
        return None
    queue_s, execute_s = prefill.queued_s or 0.0, prefill.execute_s or 0.0
    admission_s, first_step_s = decode.admission_s or 0.0, decode.first_step_s or 0.0
    return TtftParts(
        queue=queue_s,
        execute=execute_s,
        transfer=max(0.0, ttft_s - queue_s - execute_s - admission_s - first_step_s),
        admission=admission_s,
        first_step=first_step_s,
    )
