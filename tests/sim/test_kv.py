"""KV room: INV-12."""

from __future__ import annotations

import pytest

from spillway.core.errors import InvariantViolation
from spillway.sim.kv import UNBOUNDED_TOKENS, KvPool


def test_what_is_taken_is_no_longer_free() -> None:
    kv = KvPool(100)
    kv.take(30)
    kv.give(10)
    assert (kv.used_tokens, kv.free_tokens) == (20, 80)


def test_an_unknown_capacity_is_no_limit() -> None:
    assert KvPool(0).free_tokens == UNBOUNDED_TOKENS


def test_overbooking_and_freeing_twice_are_bugs() -> None:
    kv = KvPool(100)
    with pytest.raises(InvariantViolation, match="overbooked by 1"):
        kv.take(101)
    kv = KvPool(100)
    kv.take(5)
    with pytest.raises(InvariantViolation, match="1 more KV tokens freed"):
        kv.give(6)
