"""Chains of blocks, and what a router remembers of them."""

from __future__ import annotations

import pytest

from spillway.core.errors import ConfigError
from spillway.core.prefixes import PrefixIndex, chain_blocks


def index(blocks_max: int = 100, stale_s: float = 60.0) -> PrefixIndex:
    return PrefixIndex(lambda node_id: blocks_max, stale_s=stale_s)


def test_chains_agree_exactly_as_far_as_prompts_do() -> None:
    one, other = chain_blocks([1, 2, 3, 4], 16), chain_blocks([1, 2, 9, 4], 16)
    assert one[:2] == other[:2]
    assert not set(one[2:]) & set(other)
    assert chain_blocks([1, 2], 512)[0] != one[0]  # another block size is another prompt
    assert chain_blocks([], 16) == ()


def test_an_index_knows_the_leading_blocks_of_what_was_sent() -> None:
    known = index()
    known.note("p0", (1, 2, 3), 0.0)
    known.note("d0", (1, 2), 0.0)
    assert known.held((1, 2, 3, 4), 100, 1.0) == (("d0", 200), ("p0", 300))
    assert known.held((1, 9, 3), 100, 1.0) == (("d0", 100), ("p0", 100))
    assert known.held((9, 1), 100, 1.0) == ()


def test_blocks_not_used_for_long_count_half() -> None:
    known = index(stale_s=60.0)
    known.note("p0", (1, 2, 3, 4), 0.0)
    known.note("p0", (1, 2), 50.0)
    assert known.held((1, 2, 3, 4), 100, 60.0) == (("p0", 400),)
    assert known.held((1, 2, 3, 4), 100, 61.0) == (("p0", 300),)
    assert known.held((1, 2, 3, 4), 100, 111.0) == (("p0", 200),)


def test_an_index_forgets_least_recently_used_first_and_a_chain_from_its_end() -> None:
    known = index(blocks_max=5)
    known.note("p0", (1, 2, 3), 0.0)
    known.note("p0", (11, 12), 1.0)
    known.note("p0", (1,), 2.0)
    known.note("p0", (21, 22), 3.0)
    assert known.held((1, 2, 3), 1, 3.0) == (("p0", 1),)
    assert known.held((11, 12), 1, 3.0) == (("p0", 2),)
    known.note("p0", tuple(range(31, 41)), 4.0)
    assert known.held(tuple(range(31, 41)), 1, 4.0) == (("p0", 5),)  # longer than there is room


def test_a_lost_node_holds_nothing() -> None:
    known = index()
    known.note("p0", (1,), 0.0)
    known.forget("p0")
    known.forget("stranger")
    assert known.held((1,), 1, 0.0) == ()


@pytest.mark.parametrize("stale_s", [0.0, float("nan"), float("inf")])
def test_staleness_needs_a_positive_age(stale_s: float) -> None:
    with pytest.raises(ConfigError, match="prefix index"):
        index(stale_s=stale_s)
