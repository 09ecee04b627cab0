"""Request records survive a disk, stay short, and refuse what they do not know."""

from __future__ import annotations

import msgspec
import pytest

from spillway.wire.records import RECORD_VERSION, RequestRecord, TtftParts

PLAIN = RequestRecord(
    request_id="r1",
    arrival_s=0.5,
    prompt_tokens=10,
    output_tokens=2,
    slo_ttft_s=1.0,
    slo_tbt_s=0.06,
    outcome="finished",
)


def test_a_record_survives_json():
    full = msgspec.structs.replace(
        PLAIN,
        route="deflected",
        reason="faster_on_decode",
        ttft_s=0.25,
        gaps=1,
        parts=TtftParts(queue=0.1, execute=0.15),
        kv_bytes_moved=7,
    )
    line = msgspec.json.encode(full)
    assert b"\n" not in line
    assert msgspec.json.decode(line, type=RequestRecord) == full


def test_what_is_not_known_takes_no_room():
    assert set(msgspec.json.decode(msgspec.json.encode(PLAIN))) == {
        "request_id",
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "slo_ttft_s",
        "slo_tbt_s",
        "outcome",
    }
    assert msgspec.json.decode(msgspec.json.encode(PLAIN), type=RequestRecord) == PLAIN
    assert PLAIN.version == RECORD_VERSION


def test_an_incomplete_or_mistyped_record_is_refused():
    for line in (b'{"request_id": "r1"}', b'{"request_id": 5}', b"[]"):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(line, type=RequestRecord)
