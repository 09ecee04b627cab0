"""The arithmetic of ramps against sums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spillway.sim.jumps import ramp_s, steps_done, steps_reaching

FIRSTS_S = st.floats(1e-4, 0.2)
SLOPES_S = st.one_of(st.just(0.0), st.floats(1e-9, 1e-3))


@given(FIRSTS_S, SLOPES_S, st.integers(0, 300))
def test_a_ramp_is_the_sum_of_its_steps(first_s: float, slope_s: float, steps: int) -> None:
    total_s = sum(first_s + slope_s * i for i in range(steps))
    assert abs(ramp_s(first_s, slope_s, steps) - total_s) < 1e-9 * (1 + total_s)


@given(FIRSTS_S, SLOPES_S, st.floats(0.0, 30.0))
def test_steps_reaching_is_the_first_boundary_not_before(
    first_s: float, slope_s: float, elapsed_s: float
) -> None:
    steps = steps_reaching(first_s, slope_s, elapsed_s)
    assert steps >= 1
    assert ramp_s(first_s, slope_s, steps) >= elapsed_s
    assert steps == 1 or ramp_s(first_s, slope_s, steps - 1) < elapsed_s


@given(FIRSTS_S, SLOPES_S, st.integers(1, 400))
def test_a_boundary_itself_is_reached_by_its_own_step(
    first_s: float, slope_s: float, steps: int
) -> None:
    assert steps_reaching(first_s, slope_s, ramp_s(first_s, slope_s, steps)) == steps


@given(FIRSTS_S, SLOPES_S, st.floats(0.0, 30.0), st.integers(1, 50))
def test_steps_done_counts_complete_steps(
    first_s: float, slope_s: float, elapsed_s: float, steps_max: int
) -> None:
    done = steps_done(first_s, slope_s, elapsed_s, steps_max)
    assert 0 <= done <= steps_max
    assert ramp_s(first_s, slope_s, done) <= elapsed_s
    assert done == steps_max or ramp_s(first_s, slope_s, done + 1) > elapsed_s
