"""The probe plan: it stays within the engine's limits and covers what the law needs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibsamples import make_limits, planned_steps
from spillway.calib.probes import chunk_sizes, make_plan, warm_up
from spillway.calib.samples import EngineLimits
from spillway.core.errors import ConfigError


@given(
    context=st.integers(256, 131_072),
    kv=st.integers(2_000, 1_000_000),
    streams=st.integers(2, 512),
    chunk=st.integers(16, 8192),
    quick=st.booleans(),
)
def test_no_plan_asks_for_more_than_the_engine_has(
    context: int, kv: int, streams: int, chunk: int, quick: bool
) -> None:
    limits = make_limits(
        context_tokens_max=min(context, kv),
        kv_capacity_tokens=kv,
        streams_max=streams,
        chunk_tokens_max=chunk,
    )
    try:
        plan = make_plan(limits, quick=quick)
    except ConfigError:
        assert kv < 10_000  # room for two streams and what they grow by
        return
    for ladder in (warm_up(limits), *plan):
        assert ladder.context_tokens >= 1
        assert ladder.context_tokens + ladder.output_tokens < limits.context_tokens_max
        sizes = [rung.decode_seqs for rung in ladder.rungs]
        assert sizes == sorted(set(sizes))
        assert sizes[-1] <= streams
        for rung in ladder.rungs:
            kept = rung.decode_seqs * (ladder.context_tokens + ladder.output_tokens)
            assert kept + max(rung.prompts_tokens, default=0) <= kv
            assert all(1 <= tokens < limits.context_tokens_max for tokens in rung.prompts_tokens)


@pytest.mark.parametrize("quick", [True, False])
def test_a_plan_covers_what_the_law_is_made_of(quick: bool) -> None:
    steps = planned_steps(make_limits(), quick=quick)
    assert {seqs for seqs, _, _, _ in steps} >= {0, 1, 4, 16, 64}
    assert max(kv for _, kv, _, _ in steps) > 100_000
    chunks = {chunk for _, _, chunk, _ in steps}
    for low, high in ((1, 64), (65, 128), (129, 256), (257, 512), (513, 1024), (1025, 2047)):
        assert any(low <= chunk <= high for chunk in chunks), (low, high)
    assert max(context for _, _, chunk, context in steps if chunk) > 10_000
    beside_none = [step for step in steps if step[0] == 0]
    assert all(chunk for _, _, chunk, _ in beside_none)
    assert beside_none


def test_the_quick_plan_needs_few_requests() -> None:
    plan = make_plan(make_limits(), quick=True)
    requests = sum(
        ladder.rungs[-1].decode_seqs + sum(len(rung.prompts_tokens) for rung in ladder.rungs)
        for ladder in plan
    )
    assert requests < 200


def test_the_full_plan_begins_with_the_quick_one_and_goes_further() -> None:
    quick, full = (make_plan(make_limits(), quick=quick) for quick in (True, False))
    assert full[: len(quick)] == quick
    assert len(full) > 2 * len(quick)
    assert len({ladder.context_tokens for ladder in full}) == len(full)


def test_without_an_idle_engine_every_rung_has_streams() -> None:
    plan = make_plan(make_limits(), quick=False, idle=False)
    assert all(rung.decode_seqs for ladder in plan for rung in ladder.rungs)


def test_chunk_sizes_reach_the_largest_and_stay_below() -> None:
    assert chunk_sizes(100) == (16, 23, 32, 45, 64, 91, 100)
    assert chunk_sizes(16) == (16,)
    assert chunk_sizes(8) == (8,)


def test_an_engine_without_room_for_two_streams_is_refused() -> None:
    limits = EngineLimits(
        context_tokens_max=512, kv_capacity_tokens=512, streams_max=64, chunk_tokens_max=512
    )
    with pytest.raises(ConfigError, match="--kv-capacity-tokens"):
        make_plan(limits, quick=True)
