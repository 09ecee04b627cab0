"""Joining what the client saw with what the engines wrote."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import astuple

from spillway.cli.join import join_parts
from spillway.fakeengine.records import EngineRecord
from spillway.wire.records import RequestRecord, TtftParts


def seen(request_id: str = "r1", ttft_s: float | None = 1.0) -> RequestRecord:
    return RequestRecord(
        request_id=request_id,
        arrival_s=0.0,
        prompt_tokens=100,
        output_tokens=10,
        slo_ttft_s=1.0,
        slo_tbt_s=0.06,
        outcome="finished",
        ttft_s=ttft_s,
    )


def leg(kind: str, request_id: str = "r1", **changes: Any) -> EngineRecord:
    fields: dict[str, Any] = {
        "request_id": request_id,
        "node_id": "n",
        "role": "decode",
        "leg": kind,
        "outcome": "finished",
        "prompt_tokens": 100,
        "output_tokens": 10,
    }
    return EngineRecord(**(fields | changes))


PREFILL = leg("prefill", queued_s=0.3, execute_s=0.4, first_step_s=0.0)
DECODE = leg("decode", transfer_s=0.1, admission_s=0.05, first_step_s=0.02, kv_bytes_moved=7)


def test_two_legs_give_the_parts_of_the_prefill_path() -> None:
    (record,) = join_parts([seen()], [DECODE, PREFILL])
    assert record.parts is not None
    assert record.parts.queue == 0.3
    assert record.parts.execute == 0.4
    assert record.parts.admission == 0.05
    assert record.parts.first_step == 0.02
    assert record.kv_bytes_moved == 7


def test_what_no_engine_accounts_for_is_transfer() -> None:
    (record,) = join_parts([seen()], [DECODE, PREFILL])
    assert record.parts is not None
    assert record.parts.transfer == pytest.approx(1.0 - 0.3 - 0.4 - 0.05 - 0.02)


def test_or_queue_for_a_deflected_request_which_moves_nothing() -> None:
    (record,) = join_parts([seen()], [leg("whole", queued_s=0.2, execute_s=0.7, first_step_s=0.0)])
    assert record.parts == TtftParts(queue=pytest.approx(0.3), execute=0.7)
    assert record.kv_bytes_moved == 0


@pytest.mark.parametrize("legs", [[DECODE, PREFILL], [leg("whole", execute_s=0.7)]])
def test_parts_add_up_to_the_ttft(legs: list[EngineRecord]) -> None:
    (record,) = join_parts([seen(ttft_s=2.5)], legs)
    assert record.parts is not None
    assert sum(astuple(record.parts)) == pytest.approx(2.5)


def test_unknown_and_unfinished_legs_leave_the_parts_unknown() -> None:
    failed = leg("prefill", queued_s=0.3, execute_s=0.4, outcome="failed")
    records = join_parts([seen(), seen("r2"), seen("r3", None)], [failed, DECODE])
    assert [record.parts for record in records] == [None, None, None]
