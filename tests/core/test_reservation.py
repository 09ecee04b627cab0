"""What a node grants: judged on all that is there and all that it has promised."""

from __future__ import annotations

import pytest

from builders import make_node, make_request
from spillway.core.reservation import (
    GRANTED_S_MAX,
    GRANTS_MAX,
    SLACK_FRAC,
    Ask,
    Grants,
    NodeLoad,
    Verdict,
    backlog_tokens_max,
    judge,
)

IDLE = NodeLoad(0, 0, 100_000, False)


def ask(dispatch_id: int = 1, router_id: str = "a", **changes: int) -> Ask:
    fields = {"tokens": 1000, "pairs": 10, "backlog_tokens_max": 500} | changes
    return Ask(router_id, dispatch_id, **fields)


@pytest.mark.parametrize(
    ("load", "verdict"),
    [
        (IDLE, Verdict.GRANTED),
        (NodeLoad(500, 0, 100_000, False), Verdict.GRANTED),
        (NodeLoad(501, 0, 100_000, False), Verdict.BACKLOG),
        (NodeLoad(500, 98_500, 100_000, False), Verdict.GRANTED),
        (NodeLoad(500, 98_501, 100_000, False), Verdict.KV),
        (NodeLoad(500, 98_501, 0, False), Verdict.GRANTED),  # its room is not known
        (NodeLoad(0, 0, 100_000, True), Verdict.OVER_BUDGET),
    ],
)
def test_a_node_is_judged_by_what_is_on_it(load: NodeLoad, verdict: Verdict) -> None:
    assert judge(ask(), load) is verdict


def test_what_is_granted_counts_until_it_arrives() -> None:
    grants = Grants()
    assert grants.decide(ask(), IDLE, 0.0) is Verdict.GRANTED
    assert (grants.prompts, grants.tokens, grants.pairs) == (1, 1000, 10)
    assert grants.decide(ask(router_id="b"), IDLE, 0.1) is Verdict.BACKLOG
    grants.arrived("a", 1)
    assert (grants.prompts, grants.tokens, grants.pairs) == (0, 0, 0.0)
    assert grants.decide(ask(router_id="b"), IDLE, 0.2) is Verdict.GRANTED


def test_granted_work_takes_kv_as_well() -> None:
    grants, full = Grants(), NodeLoad(0, 98_500, 100_000, False)
    assert grants.decide(ask(backlog_tokens_max=9000), full, 0.0) is Verdict.GRANTED
    assert grants.decide(ask(2, backlog_tokens_max=9000), full, 0.0) is Verdict.KV


def test_a_question_asked_twice_is_one_grant() -> None:
    grants = Grants()
    assert {grants.decide(ask(), IDLE, 0.0) for _ in range(2)} == {Verdict.GRANTED}
    assert grants.tokens == 1000


def test_a_request_that_never_comes_is_forgotten() -> None:
    grants = Grants()
    grants.decide(ask(), IDLE, 0.0)
    grants.expire(GRANTED_S_MAX - 0.01)
    assert grants.prompts == 1
    assert grants.decide(ask(2), IDLE, GRANTED_S_MAX) is Verdict.GRANTED
    assert grants.seen() == {"a": 2}
    grants.arrived("a", 1)  # late after all: it counts for itself
    assert grants.tokens == 1000


def test_grants_are_bounded() -> None:
    grants = Grants()
    small = {"tokens": 1, "backlog_tokens_max": 1 << 30}
    for at in range(GRANTS_MAX):
        assert grants.decide(ask(at + 1, **small), IDLE, 0.0) is Verdict.GRANTED
    assert grants.decide(ask(GRANTS_MAX + 1, **small), IDLE, 0.0) is Verdict.BUSY
    assert grants.seen() == {"a": GRANTS_MAX}


def test_an_order_allows_what_its_router_knew_and_a_little_more() -> None:
    node = make_node(backlog_tokens=700)
    request = make_request(prompt_tokens=2000)
    assert backlog_tokens_max(request, node) == 700 + int(SLACK_FRAC * 2000)
