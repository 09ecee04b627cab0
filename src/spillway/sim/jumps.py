"""Arithmetic of a ramp: m steps of which step i lasts first_s + slope_s·i.

Between two changes of its membership a batch repeats the same step; only its contexts grow, by one
token per sequence and step, so step times grow by a constant. Every question a node has about such
a run of steps then has a closed form. Slopes are never negative.
"""

from __future__ import annotations

from math import inf, sqrt


def ramp_s(first_s: float, slope_s: float, steps: int) -> float:
    """Return how long `steps` steps take together: m·t0 + slope·m(m−1)/2."""
    return steps * first_s + slope_s * (steps * (steps - 1) / 2)


def steps_reaching(first_s: float, slope_s: float, elapsed_s: float) -> int:
    """Return the smallest m >= 1 whose steps together last at least `elapsed_s`.

    It is the number of steps until the one under way at `elapsed_s` ends. The root of the quadratic
    is corrected by at most a step or two, so that rounding cannot place a boundary in the past.
    """
    if elapsed_s <= first_s:
        return 1
    if slope_s <= 0.0:
        steps = int(elapsed_s / first_s) + 1
    else:
        linear_s = first_s - slope_s / 2
        root = 2 * elapsed_s / (linear_s + sqrt(linear_s * linear_s + 2 * slope_s * elapsed_s))
        steps = int(root) + 1
    # Rounding may have put the root a step too far, or too near.
    if ramp_s(first_s, slope_s, steps - 1) >= elapsed_s:
        return steps - 1
    return steps if ramp_s(first_s, slope_s, steps) >= elapsed_s else steps + 1


def steps_done(first_s: float, slope_s: float, elapsed_s: float, steps_max: int) -> int:
    """Return how many steps are complete at `elapsed_s`, at most `steps_max`."""
    steps = steps_reaching(first_s, slope_s, elapsed_s)
    if ramp_s(first_s, slope_s, steps) > elapsed_s:
        steps -= 1
    return min(steps, steps_max)


class Segment:
    """`steps` steps from start_s to end_s, step i lasting first_s + slope_s·i.

    No steps means that the node is idle, or woken and about to form a segment at end_s.
    """

    __slots__ = ("end_s", "first_s", "slope_s", "start_s", "steps")

    def __init__(self) -> None:
        self.start_s = 0.0
        self.end_s = inf
        self.steps = 0
        self.first_s = 0.0
        self.slope_s = 0.0
