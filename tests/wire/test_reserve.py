"""The question for leave to deflect and its answer, there and back."""

from __future__ import annotations

import pytest

from spillway.core.errors import NodeError, RequestError
from spillway.core.reservation import Ask, Grants, NodeLoad, Verdict
from spillway.core.types import Role
from spillway.wire.report import NodeReport, decode, encode
from spillway.wire.reserve import (
    RESERVE_PATH,
    decode_answer,
    encode_answer,
    load_of,
    read_ask,
    reserve_target,
    with_grants,
)

ASK = Ask("router-1", 7, 2000, 2001000.5, 512)


def report(**changes: object) -> NodeReport:
    fields: dict[str, object] = {
        "node_id": "d0",
        "role": Role.DECODE,
        "seq": 1,
        "step": 10,
        "backlog_prompts": 1,
        "backlog_tokens": 100,
        "backlog_token_pairs": 5000.0,
        "decode_seqs": 3,
        "kv_used_tokens": 2000,
        "kv_capacity_tokens": 50_000,
        "dispatch_seen": {"router-1": 3},
    }
    return NodeReport(**(fields | changes))


def test_a_question_comes_back_as_it_was() -> None:
    path, _, query = reserve_target(ASK).partition("?")
    assert path == RESERVE_PATH
    assert read_ask(query) == ASK


@pytest.mark.parametrize("router_id", ["a&dispatch=9", "ü b", "x" * 128])
def test_no_router_id_changes_the_rest_of_the_question(router_id: str) -> None:
    ask = ASK._replace(router_id=router_id)
    assert read_ask(reserve_target(ask).partition("?")[2]) == ask


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("", "router"),
        ("router=" + "x" * 129, "router"),
        ("router=a&dispatch=-1&tokens=1&ahead=1", "dispatch"),
        ("router=a&dispatch=1&tokens=1e3&ahead=1", "tokens"),
        ("router=a&dispatch=1&tokens=1&ahead=", "ahead"),
        ("router=a&dispatch=1&tokens=1&ahead=1&pairs=nan", "pairs"),
        ("router=a&dispatch=1&tokens=1&ahead=1&pairs=x", "pairs"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(query: str, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_ask(query)
    assert raised.value.param == param


def test_a_refusal_brings_the_report_and_leave_does_not() -> None:
    status, body = encode_answer(Verdict.BACKLOG, report())
    assert (status, decode_answer(body).report) == (409, report())
    status, body = encode_answer(Verdict.GRANTED, report())
    assert (status, decode_answer(body).report) == (200, None)
    with pytest.raises(NodeError):
        decode_answer(b'{"verdict":"perhaps"}')


def test_what_is_granted_is_told_as_backlog_and_as_seen() -> None:
    grants = Grants()
    assert grants.decide(ASK, NodeLoad(0, 0, 0, False), 0.0) is Verdict.GRANTED
    told = with_grants(report(), grants, 2)
    assert told.routers == 2
    assert told.dispatch_seen == {"router-1": 7}
    assert told.backlog_prompts == 2
    assert told.backlog_tokens == 2100
    assert told.backlog_token_pairs == 5000.0 + ASK.pairs
    assert load_of(report()) == NodeLoad(100, 2000, 50_000, False)


def test_one_router_alone_is_told_what_it_always_was() -> None:
    assert with_grants(report(), Grants(), 0) == report()
    assert b"routers" not in encode(report())
    assert decode(encode(report(routers=3))).routers == 3
