"""Arrival processes: rate, clumping, order, refusals."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import ConfigError
from spillway.workload.arrivals import Arrivals, Gamma, OnOff, Poisson, Weibull
from spillway.workload.seeds import stream

PROCESSES = [Poisson(), Gamma(0.5), Gamma(3.0), OnOff(3.0, 3.0, 9.0), Weibull(0.7)]


def gap_cv(times_s: list[float]) -> float:
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    return pstdev(gaps_s) / fmean(gaps_s)


def dispersion(times_s: list[float], duration_s: int) -> float:
    """Variance over mean of the counts per second: 1 for a Poisson process."""
    counts = [0] * duration_s
    for time_s in times_s:
        counts[int(time_s)] += 1
    return pstdev(counts) ** 2 / fmean(counts)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_mean_rate_is_as_asked(process: Arrivals):
    counts = [len(process.draw(stream(seed, "rate"), 10.0, 600.0)) for seed in range(5)]
    assert fmean(counts) == pytest.approx(6_000, rel=0.06)


@pytest.mark.parametrize(
    ("process", "cv"),
    [
        (Poisson(), 1.0),
        (Gamma(0.5), 0.5),
        (Gamma(3.0), 3.0),
        (Weibull(1.0), 1.0),
        (Weibull(0.5), 5**0.5),
    ],
)
def test_the_gaps_vary_as_asked(process: Arrivals, cv: float):
    assert gap_cv(process.draw(stream(3, "cv"), 50.0, 400.0)) == pytest.approx(cv, rel=0.08)


def test_on_off_comes_in_bursts():
    calm = dispersion(Poisson().draw(stream(1, "a"), 20.0, 600.0), 600)
    bursty = dispersion(OnOff(3.0, 3.0, 9.0).draw(stream(1, "a"), 20.0, 600.0), 600)
    assert calm == pytest.approx(1.0, abs=0.2)
    # Rates 60/s and 6.7/s, a quarter of the time on: (var of rate) / mean + 1 is about 27.
    assert bursty == pytest.approx(27, rel=0.3)


def test_a_peak_that_is_all_of_the_mean_leaves_silence_between():
    times_s = OnOff(4.0, 1.0, 3.0).draw(stream(2, "a"), 20.0, 100.0)
    gaps_s = [later - earlier for earlier, later in pairwise(times_s)]
    assert sum(gap_s > 0.8 for gap_s in gaps_s) >= 15
    assert len(times_s) == pytest.approx(2_000, rel=0.25)


def test_bursty_gaps_have_forgotten_their_start():
    """Without a warm-up a process of CV 3 shows (9 - 1) / 2 = 4 arrivals too many at its start."""
    early = fmean(len(Gamma(3.0).draw(stream(seed, "s"), 1.0, 2.0)) for seed in range(300))
    assert early == pytest.approx(2.0, abs=0.8)


@given(
    st.sampled_from(PROCESSES), st.floats(0.01, 50.0), st.floats(0.01, 20.0), st.integers(0, 999)
)
def test_times_ascend_within_the_duration(
    process: Arrivals, rate_per_s: float, duration_s: float, seed: int
):
    times_s = process.draw(stream(seed, "any"), rate_per_s, duration_s)
    assert times_s == sorted(times_s)
    assert all(0.0 <= time_s < duration_s for time_s in times_s)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_impossible_rates_and_durations_are_refused(process: Arrivals, bad: float):
    with pytest.raises(ConfigError):
        process.draw(stream(0, "x"), bad, 10.0)
    with pytest.raises(ConfigError):
        process.draw(stream(0, "x"), 10.0, bad)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_parameters_are_refused(bad: float):
    for make in (lambda: Gamma(bad), lambda: OnOff(bad, 1, 1), lambda: OnOff(1, bad, 1)):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(ConfigError, match="off_s"):
        OnOff(1.0, 1.0, bad)
    with pytest.raises(ConfigError, match="at most 4"):
        OnOff(4.1, 1.0, 3.0)
