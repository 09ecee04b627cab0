"""The scalar that rides in `vllm_xargs`: what is written is read, and nonsense is refused."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import RequestError
from spillway.wire.order import (
    ROUTER_ID_CHARS_MAX,
    ROUTERS_MAX,
    DispatchesSeen,
    EngineOrder,
    decode_order,
    encode_order,
)


def test_an_order_is_one_scalar_with_the_target_in_milliseconds() -> None:
    assert encode_order(EngineOrder("r1", 17, 0.06)) == "r1:17:60"
    assert encode_order(EngineOrder("r1", 17)) == "r1:17:"
    assert decode_order("r1:17:") == EngineOrder("r1", 17, None)


@given(
    router_id=st.text(min_size=1, max_size=ROUTER_ID_CHARS_MAX),
    dispatch_id=st.integers(0, 10**18 - 1),
    tbt_s=st.none() | st.floats(1e-4, 1e3),
)
def test_what_is_written_is_read_whatever_the_routers_name(
    router_id: str, dispatch_id: int, tbt_s: float | None
) -> None:
    order = decode_order(encode_order(EngineOrder(router_id, dispatch_id, tbt_s)))
    assert order[:2] == (router_id, dispatch_id)
    assert order.tbt_s == (None if tbt_s is None else pytest.approx(tbt_s, rel=1e-8))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r1",
        "r1:17",
        ":17:60",
        "r1:-1:60",
        "r1:x:60",
        "r1:17:0",
        "r1:17:-5",
        "r1:17:nan",
        "r1:17:inf",
        "r1:17:soon",
        "r1:" + "9" * 19 + ":60",
        "r" * (ROUTER_ID_CHARS_MAX + 1) + ":17:60",
        17,
        None,
        ["r1:17:60"],
    ],
)
def test_what_is_no_order_is_refused_with_the_form_it_should_have(text: object) -> None:
    with pytest.raises(RequestError, match="<router id>:<dispatch id>:<target in ms"):
        decode_order(text)


def test_the_highest_dispatch_of_each_router_is_kept() -> None:
    seen = DispatchesSeen(Counter())
    for router_id, dispatch_id in (("a", 3), ("b", 9), ("a", 2)):
        seen.note(router_id, dispatch_id)
    assert seen.by_router() == {"a": 3, "b": 9}


def test_routers_unheard_for_longest_are_forgotten_and_counted() -> None:
    dropped: Counter[str] = Counter()
    seen = DispatchesSeen(dropped)
    seen.note("old", 1)
    for number in range(ROUTERS_MAX):
        seen.note(f"r{number}", 1)
    assert "old" not in seen.by_router()
    assert len(seen.by_router()) == ROUTERS_MAX
    assert dropped["router_forgotten"] == 1
