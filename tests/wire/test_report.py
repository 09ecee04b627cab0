"""Node reports: what is encoded is decoded, and nonsense is refused by name."""

from __future__ import annotations

import json
from math import inf

import pytest

from spillway.core.errors import NodeError
from spillway.core.types import ChunkMode, Role
from spillway.wire import report as wire


def a_report(**changes: object) -> wire.NodeReport:
    fields: dict[str, object] = {
        "node_id": "d0",
        "role": Role.DECODE,
        "seq": 7,
        "step": 1234,
        "dispatch_seen": {"r1": 41, "r2": 3},
        "backlog_prompts": 1,
        "backlog_tokens": 900,
        "backlog_token_pairs": 405450.0,
        "decode_seqs": 12,
        "kv_used_tokens": 20000,
        "kv_capacity_tokens": 400000,
        "tbt_s_min": 0.06,
        "chunk_mode": ChunkMode.ENGINE,
        "chunk_tokens_max": 2048,
    }
    return wire.NodeReport(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_report_survives_the_wire_as_one_line() -> None:
    report = a_report()
    line = wire.encode(report)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert wire.decode(line) == report


def test_state_carries_this_routers_dispatch_id_and_the_receivers_clock() -> None:
    state = wire.to_state(a_report(), 5.5, "r1")
    assert (state.dispatch_seen, state.taken_at_s, state.step) == (41, 5.5, 1234)
    assert (state.backlog_tokens, state.backlog_token_pairs) == (900, 405450.0)
    assert state.tbt_s_min == 0.06
    assert wire.to_state(a_report(), 5.5, "unknown").dispatch_seen == 0


def test_no_resident_target_means_no_limit() -> None:
    assert wire.to_state(a_report(tbt_s_min=None), 0.0, "r1").tbt_s_min == inf


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backlog_tokens", -1),
        ("decode_seqs", "many"),
        ("tbt_s_min", -0.1),
        ("role", "router"),
        ("version", 2),
        ("version", 0),
        ("chunk_mode", "magic"),
    ],
)
def test_a_wrong_field_is_refused_by_name(field: str, value: object) -> None:
    fields = json.loads(wire.encode(a_report()))
    fields[field] = value
    with pytest.raises(NodeError, match=field):
        wire.decode(json.dumps(fields).encode())


def test_missing_and_unknown_fields_are_refused() -> None:
    fields = json.loads(wire.encode(a_report()))
    with pytest.raises(NodeError, match="surprise"):
        wire.decode(json.dumps({**fields, "surprise": 1}).encode())
    del fields["step"]
    with pytest.raises(NodeError, match="step"):
        wire.decode(json.dumps(fields).encode())


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"null", b"\xff\n", b'{"seq": NaN}', b'{"\xff":1}', b'{"x":' + b"[" * 9999],
)
def test_what_is_not_json_or_not_an_object_is_refused(line: bytes) -> None:
    with pytest.raises(NodeError, match="not a node report"):
        wire.decode(line)


def test_what_only_a_plug_in_knows_is_optional_and_survives_the_wire() -> None:
    plain = a_report()
    assert (plain.boot_id, plain.fault, plain.errors) == ("", "", 0)
    assert (plain.gain_decode, plain.gain_prefill, plain.margin) == (1.0, 1.0, 1.0)
    assert b"gain" not in wire.encode(plain)  # so a reader that does not know it is not disturbed
    full = a_report(
        boot_id="b1",
        backlog_tokens_running=400,
        pulling_seqs=3,
        chunk_tokens_now=512,
        gain_decode=1.2,
        gain_prefill=0.9,
        margin=1.1,
        errors=1,
        fault="ValueError: a bug",
    )
    assert wire.decode(wire.encode(full)) == full
    told = wire.to_state(full, 1.0, "r1")
    assert (told.gain_decode, told.gain_prefill, told.margin) == (1.2, 0.9, 1.1)
    untaught = told._replace(gain_decode=1.0, gain_prefill=1.0, margin=1.0)
    assert untaught == wire.to_state(plain, 1.0, "r1")


def test_a_step_says_what_its_chunks_were_sized_to_if_they_were() -> None:
    sized = wire.StepTaken(7, 16, 9000, 512, 131_328.0, 0.05, 0.049, 0.04, 0.054)
    plain = wire.StepTaken(8, 16, 9016, 0, 0.0, 0.012)
    report = a_report(recent_steps=(sized, plain))
    assert wire.decode(wire.encode(report)).recent_steps == (sized, plain)
    assert plain.budget_s == 0.0
