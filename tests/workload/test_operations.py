"""Operations on rows: what each keeps, what it changes, and what it refuses."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import ConfigError
from spillway.workload.operations import (
    OPERATIONS,
    Dated,
    apply_operation,
    drop_longer_than,
    largest_burst,
    merge,
    overlay,
    poisson_arrivals,
    shuffle_lengths,
    speed_up,
    thin,
    window,
)
from spillway.workload.row import Row

ROWS = [Row(0.0, 10, 1), Row(1.0, 20, 1), Row(4.0, 500, 1), Row(4.5, 600, 2), Row(9.0, 30, 1)]
MANY = [Row(at * 0.01 + (at // 100) * 10.0, 100 + at, 1 + at % 7) for at in range(3_000)]
TALK = [
    Row(float(at), 100, 5, "default", (0, 1 + at), 64, f"s{at % 10}{'/1' if at % 3 else ''}")
    for at in range(60)
]


# --- cutting ---------------------------------------------------------------------------------


def test_a_window_is_half_open_and_starts_again_at_0():
    assert [row.arrival_s for row in window(ROWS, 1.0, 4.5)] == [0.0, 3.0]
    assert [row.arrival_s for row in window(ROWS, 4.5)] == [0.0, 4.5]
    assert window(ROWS) == ROWS
    assert window(ROWS, 100.0) == []


@pytest.mark.parametrize(("from_s", "to_s"), [(5.0, 5.0), (6.0, 5.0), (float("nan"), 5.0)])
def test_an_impossible_window_is_refused(from_s: float, to_s: float):
    with pytest.raises(ConfigError, match="window"):
        window(ROWS, from_s, to_s)


def test_speed_up_divides_the_times_and_touches_nothing_else():
    faster = speed_up(ROWS, 2.0)
    assert [row.arrival_s for row in faster] == [0.0, 0.5, 2.0, 2.25, 4.5]
    assert [row[1:] for row in faster] == [row[1:] for row in ROWS]


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_speed_up_is_refused(factor: float):
    with pytest.raises(ConfigError, match="speed-up"):
        speed_up(ROWS, factor)


def test_rows_beyond_the_context_are_dropped_and_counted():
    kept, dropped = drop_longer_than(ROWS, 501)
    assert (len(kept), dropped) == (4, 1)
    assert Row(4.0, 500, 1) in kept  # exactly full still fits


def test_the_largest_burst_is_by_prompt_tokens():
    assert largest_burst(ROWS, 2.0) == (4.0, 6.0)
    assert largest_burst([], 2.0) == (0.0, 2.0)
    with pytest.raises(ConfigError, match="window"):
        largest_burst(ROWS, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 50)), min_size=1, max_size=30),
    st.integers(1, 10),
)
def test_no_other_window_holds_more(pairs: list[tuple[int, int]], window_s: int):
    rows = [Row(float(at), tokens, 1) for at, tokens in sorted(pairs)]
    from_s, to_s = largest_burst(rows, window_s)

    def held(start_s: float) -> int:
        return sum(row.prompt_tokens for row in window(rows, start_s, start_s + window_s))

    assert to_s == from_s + window_s
    assert held(from_s) == max(held(row.arrival_s) for row in rows)


# --- thinning and overlaying -------------------------------------------------------------------


def test_thinning_keeps_that_share_whatever_the_rest():
    kept = thin(MANY, 0.3, 7)
    assert len(kept) == pytest.approx(900, rel=0.1)
    assert set(kept) <= set(MANY)
    assert kept == thin(MANY, 0.3, 7) != thin(MANY, 0.3, 8)
    assert thin(MANY, 1.0, 7) == MANY
    assert set(thin(MANY, 0.2, 7)) <= set(kept)  # the same draws, so less is a part of more


def test_thinning_keeps_sessions_whole_with_what_is_nested_in_them():
    kept = Counter(row.session_id[:2] for row in thin(TALK, 0.5, 3))
    assert 0 < len(kept) < 10
    assert set(kept.values()) == {6}


@pytest.mark.parametrize("frac", [0.0, -0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(frac: float):
    with pytest.raises(ConfigError, match="thinning"):
        thin(ROWS, frac, 1)


def test_an_overlay_is_as_dense_at_every_time():
    laid = overlay(MANY, 3)
    assert len(laid) == 9_000
    times_s = [row.arrival_s for row in laid]
    assert times_s == sorted(times_s)
    assert times_s[0] >= MANY[0].arrival_s
    assert times_s[-1] <= MANY[-1].arrival_s * 1.001
    third_s = times_s[-1] / 3
    counts = Counter(int(at // third_s) for at in times_s)
    assert [counts[at] for at in range(3)] == pytest.approx([3_000] * 3, rel=0.05)
    assert overlay(MANY, 1) == MANY


def test_copies_share_neither_prefixes_nor_sessions():
    laid = overlay(TALK, 2)
    first = [row for row in laid if not row.session_id.startswith("1~")]
    second = [row for row in laid if row.session_id.startswith("1~")]
    assert sorted(first) == TALK
    assert not {one for row in first for one in row.prefix_blocks} & {
        one for row in second for one in row.prefix_blocks
    }
    assert len({row.prefix_blocks[0] for row in second}) == 1  # within a copy all is as it was
    assert {row.session_id[2:] for row in second} == {row.session_id for row in TALK}


@pytest.mark.parametrize("copies", [0, -1, 1_001])
def test_an_impossible_overlay_is_refused(copies: int):
    with pytest.raises(ConfigError, match="overlay"):
        overlay(ROWS, copies)
    with pytest.raises(ConfigError, match="all requests arrive at once"):
        overlay([Row(1.0, 1, 1)] * 2, 2)


# --- merging ---------------------------------------------------------------------------------


def test_a_merge_keeps_the_wall_clock():
    other = [Row(0.5, 7, 7), Row(2.5, 7, 7)]
    rows, how = merge([Dated(ROWS, 5_000_000_000), Dated(other, 3_000_000_000)])
    assert how == "on the wall clock"
    assert [row.arrival_s for row in rows] == [0.5, 2.0, 2.5, 3.0, 6.0, 6.5, 11.0]


def test_without_a_clock_each_starts_at_its_own_0():
    rows, how = merge([Dated(ROWS, 5_000_000_000), Dated([Row(0.5, 7, 7)], None)])
    assert how == "each from its own second 0"
    assert [row.arrival_s for row in rows] == [0.0, 0.5, 1.0, 4.0, 4.5, 9.0]


def test_recordings_of_different_days_are_not_merged():
    with pytest.raises(ConfigError, match="recorded at different times"):
        merge([Dated(ROWS, 0), Dated(ROWS, 86_400_000_000_000)])


def test_merged_traces_share_no_ids():
    rows, _ = merge([Dated(TALK, None), Dated(TALK, None)])
    ids = Counter(row.prefix_blocks[0] for row in rows)
    assert sorted(ids.values()) == [60, 60]


# --- redrawing -------------------------------------------------------------------------------


def test_poisson_arrivals_keep_the_requests_and_the_rate():
    drawn = poisson_arrivals(MANY, 5)
    assert [row[1:] for row in drawn] == [row[1:] for row in MANY]
    gaps_s = [later.arrival_s - earlier.arrival_s for earlier, later in pairwise(drawn)]
    assert pstdev(gaps_s) / fmean(gaps_s) == pytest.approx(1.0, abs=0.08)
    assert drawn[-1].arrival_s == pytest.approx(MANY[-1].arrival_s, rel=0.02)
    assert drawn == poisson_arrivals(MANY, 5) != poisson_arrivals(MANY, 6)
    assert poisson_arrivals([], 5) == []


def test_shuffled_lengths_keep_the_times_and_the_lengths():
    dealt = shuffle_lengths(MANY, 5)
    assert [row.arrival_s for row in dealt] == [row.arrival_s for row in MANY]
    assert sorted(row[1:] for row in dealt) == sorted(row[1:] for row in MANY)
    assert dealt != MANY


# --- as text ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("thin=0.3", 900),
        ("overlay=2", 6_000),
        ("context-max=1100", 996),
        ("speed-up=2", 3_000),
        ("arrivals=poisson", 3_000),
        ("lengths=shuffled", 3_000),
    ],
)
def test_every_operation_has_a_name_and_says_what_it_did(text: str, left: int):
    changed, note = apply_operation(MANY, text, 7)
    assert len(changed) == pytest.approx(left, rel=0.1)
    assert note.startswith(f"{text}: {OPERATIONS[text.partition('=')[0]].summary}")
    assert changed != MANY


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thinn=0.5", r"'thinn=0.5' is unknown; did you mean 'thin'\? allowed: thin=SHARE"),
        ("zzz=1", "'zzz=1' is unknown; allowed: thin=SHARE"),
        ("thin", "'thin' is unknown; allowed"),
        ("thin=half", "thin=half: a number is needed"),
        ("overlay=1.5", "overlay=1.5: a whole number is needed"),
        ("arrivals=gamma", "write arrivals=poisson"),
    ],
)
def test_an_operation_that_is_none_is_said(text: str, said: str):
    with pytest.raises(ConfigError, match=said):
        apply_operation(MANY, text, 7)
