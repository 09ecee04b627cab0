"""Percentiles against the standard library; the gap histogram against exact sorting."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.stats import GAP_CEILING_S, GAP_FLOOR_S, GapHistogram, percentile, ramp_above

gaps_s = st.floats(min_value=GAP_FLOOR_S, max_value=GAP_CEILING_S, exclude_max=True)
any_gaps_s = st.floats(min_value=0.0, max_value=2e3)
fracs = st.floats(min_value=0.0, max_value=1.0)


def histogram(values: list[float]) -> GapHistogram:
    made = GapHistogram()
    for value in values:
        made.add(value)
    return made


# --- percentile ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frac", "expected"),
    [(0.0, 10.0), (0.25, 17.5), (0.5, 25.0), (0.95, 38.5), (0.99, 39.7), (1.0, 40.0)],
)
def test_percentile_interpolates_as_numpy_does(frac: float, expected: float):
    assert percentile([10.0, 20.0, 30.0, 40.0], frac) == pytest.approx(expected)


def test_percentile_of_one_value_is_that_value():
    assert percentile([7.0], 0.0) == percentile([7.0], 0.3) == percentile([7.0], 1.0) == 7.0


@given(st.lists(any_gaps_s, min_size=2, max_size=50))
def test_percentile_agrees_with_the_standard_library(values: list[float]):
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    ordered = sorted(values)
    assert [percentile(ordered, frac) for frac in (0.25, 0.5, 0.75)] == pytest.approx(quartiles)


@pytest.mark.parametrize("frac", [-0.01, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_refused(frac: float):
    with pytest.raises(ValueError, match="share"):
        percentile([1.0], frac)
    with pytest.raises(ValueError, match="share"):
        GapHistogram().quantile(frac)


def test_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


# --- histogram -------------------------------------------------------------------------------


def test_an_empty_histogram_answers_zeros():
    empty = GapHistogram()
    assert (empty.count, empty.sum_s, empty.max_s, empty.mean_s) == (0, 0.0, 0.0, 0.0)
    assert empty.quantile(0.99) == 0.0


@given(st.lists(gaps_s, min_size=1, max_size=60), fracs)
def test_quantiles_are_within_half_a_percent_of_exact(values: list[float], frac: float):
    made = histogram(values)
    assert made.quantile(frac) == pytest.approx(percentile(sorted(values), frac), rel=0.00502)


@given(st.lists(any_gaps_s, min_size=1, max_size=60))
def test_count_sum_and_max_are_exact(values: list[float]):
    made = histogram(values)
    assert made.count == len(values)
    assert made.sum_s == pytest.approx(sum(values))
    assert made.max_s == max(values) == made.quantile(1.0)


@given(st.lists(any_gaps_s, min_size=1, max_size=40), fracs, fracs)
def test_quantiles_ascend_and_never_exceed_the_maximum(values: list[float], a: float, b: float):
    made = histogram(values)
    low, high = sorted((a, b))
    assert 0.0 <= made.quantile(low) <= made.quantile(high) <= made.max_s


@given(st.lists(any_gaps_s, max_size=30), st.lists(any_gaps_s, max_size=30), fracs)
def test_merging_is_adding_everything(left: list[float], right: list[float], frac: float):
    merged = histogram(left)
    merged.merge(histogram(right))
    whole = histogram(left + right)
    assert merged.count == whole.count
    assert merged.max_s == whole.max_s
    assert merged.quantile(frac) == whole.quantile(frac)


def test_a_count_stands_for_that_many_gaps():
    weighted, single = GapHistogram(), GapHistogram()
    weighted.add(0.02, 3)
    weighted.add(0.05)
    for gap_s in (0.02, 0.02, 0.02, 0.05):
        single.add(gap_s)
    assert weighted.count == single.count == 4
    assert [weighted.quantile(frac) for frac in (0.5, 0.7, 0.9)] == [
        single.quantile(frac) for frac in (0.5, 0.7, 0.9)
    ]


@pytest.mark.parametrize("gap_s", [-1e-9, float("nan"), float("inf")])
def test_an_impossible_gap_is_refused_and_changes_nothing(gap_s: float):
    made = histogram([0.1])
    with pytest.raises(ValueError, match="finite"):
        made.add(gap_s)
    with pytest.raises(ValueError, match="finite"):
        made.add_ramp(gap_s, 0.0, 2)
    assert (made.count, made.max_s, made.quantile(1.0)) == (1, 0.1, 0.1)


# --- ramps -----------------------------------------------------------------------------------

ramps = st.tuples(
    st.floats(min_value=0.0, max_value=3.0),
    st.one_of(st.just(0.0), st.floats(min_value=0.0, max_value=0.2)),
    st.integers(min_value=1, max_value=200),
    st.integers(min_value=1, max_value=5),
)


@given(ramps)
def test_a_ramp_is_its_gaps_one_by_one(ramp: tuple[float, float, int, int]):
    first_s, step_s, steps, weight = ramp
    values = [first_s + step_s * k for k in range(steps) for _ in range(weight)]
    made, exact = GapHistogram(), histogram(values)
    made.add_ramp(first_s, step_s, steps, weight)
    assert made.count == exact.count == steps * weight
    assert made.max_s == exact.max_s
    assert made.sum_s == pytest.approx(exact.sum_s)
    for frac in (0.0, 0.1, 0.5, 0.9, 0.99):
        # A gap on an edge may fall into either neighbour, hence one bucket's width.
        expected = exact.quantile(frac)
        assert made.quantile(frac) == pytest.approx(expected, rel=0.0101, abs=GAP_FLOOR_S)


@given(ramps, st.integers(min_value=1, max_value=199))
def test_a_ramp_in_two_halves_is_the_same_ramp(ramp: tuple[float, float, int, int], cut: int):
    first_s, step_s, steps, weight = ramp
    cut = min(cut, steps)
    whole, halves = GapHistogram(), GapHistogram()
    whole.add_ramp(first_s, step_s, steps, weight)
    halves.add_ramp(first_s, step_s, cut, weight)
    halves.add_ramp(first_s + step_s * cut, step_s, steps - cut, weight)
    assert whole.count == halves.count
    assert whole.quantile(0.5) == pytest.approx(halves.quantile(0.5), rel=0.0101, abs=GAP_FLOOR_S)


def test_a_falling_ramp_is_the_rising_one_backwards():
    falling, rising = GapHistogram(), GapHistogram()
    falling.add_ramp(0.05, -0.001, 40, 2)
    rising.add_ramp(0.011, 0.001, 40, 2)
    assert falling.count == rising.count == 80
    assert falling.max_s == pytest.approx(0.05)
    assert falling.quantile(0.25) == pytest.approx(rising.quantile(0.25), rel=0.01)


def test_a_ramp_without_steps_adds_nothing():
    made = GapHistogram()
    made.add_ramp(0.01, 0.001, 0, 7)
    assert (made.count, made.max_s) == (0, 0.0)


def test_the_work_of_a_ramp_does_not_grow_with_its_steps():
    made = GapHistogram()
    made.add_ramp(0.02, 1e-18, 10**15, 3)
    assert made.count == 3 * 10**15
    assert made.quantile(0.5) == pytest.approx(0.02, rel=0.05)


@given(ramps, any_gaps_s)
def test_ramp_above_counts_the_late_ones(ramp: tuple[float, float, int, int], limit_s: float):
    first_s, step_s, steps, _ = ramp
    late = sum(first_s + step_s * k > limit_s for k in range(steps))
    assert ramp_above(first_s, step_s, steps, limit_s) == late


def test_ramp_above_of_a_falling_ramp():
    assert ramp_above(0.05, -0.01, 5, 0.025) == 3
    assert ramp_above(0.05, -0.01, 0, 0.025) == 0
