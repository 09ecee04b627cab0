"""Percentiles of a few values, and a histogram for very many.

Request figures are few enough to keep and sort (`percentile`). Token gaps are not: a simulated hour
has millions, most of them as ramps of slowly growing step times, which `GapHistogram` takes in at
the cost of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, exp, floor, inf, log, log1p

GAP_FLOOR_S = 1e-5  # shorter gaps share one bucket and count as 0
GAP_CEILING_S = 1e3  # longer gaps share one bucket and count as the longest of all
BUCKET_GROWTH_FRAC = 0.01  # each bucket is 1 % wider than the one below

_LOG_GROWTH = log1p(BUCKET_GROWTH_FRAC)
_PER_LOG_GROWTH = 1.0 / _LOG_GROWTH
_PER_FLOOR = 1.0 / GAP_FLOOR_S
_TOP = ceil(log(GAP_CEILING_S * _PER_FLOOR) * _PER_LOG_GROWTH) + 1


def percentile(sorted_values: Sequence[float], frac: float) -> float:
    """Return the value below which the share `frac` (0 to 1) lies, of ascending values.

    Linear interpolation between neighbours, as numpy's default: the position is frac·(n - 1).
    Raises ValueError on no values or a share outside 0 to 1. Cost O(1).
    """
    if not sorted_values:
        raise ValueError("no values, so no percentile")
    if not 0.0 <= frac <= 1.0:
        raise ValueError(f"a share lies between 0 and 1, not at {frac}")
    position = frac * (len(sorted_values) - 1)
    below = floor(position)
    value = sorted_values[below]
    if position == below:
        return value
    return value + (sorted_values[below + 1] - value) * (position - below)


def ramp_above(first_s: float, step_s: float, steps: int, limit_s: float) -> int:
    """Return how many of first, first + step, ... (`steps` of them) exceed `limit_s`. Cost O(1)."""
    if steps <= 0:
        return 0
    if step_s < 0.0:
        first_s, step_s = first_s + step_s * (steps - 1), -step_s
    if first_s > limit_s:
        return steps
    if first_s + step_s * (steps - 1) <= limit_s:
        return 0
    return steps - 1 - _last_step_within(first_s, step_s, steps, limit_s)


def _last_step_within(first_s: float, step_s: float, steps: int, limit_s: float) -> int:
    """Return the largest k < steps with first + k·step <= limit, for first <= limit, step > 0.

    The quotient may be off by one through rounding, or huge; the products settle it.
    """
    at = int(min((limit_s - first_s) / step_s, steps - 1.0))
    if at + 1 < steps and first_s + step_s * (at + 1) <= limit_s:
        return at + 1
    if at > 0 and first_s + step_s * at > limit_s:
        return at - 1
    return at


class GapHistogram:
    """Counts of token gaps in buckets 1 % wide, from 10 µs to 1000 s.

    A quantile is within half a bucket, 0.5 %, of the exact one. count, sum_s and max_s are exact.
    Two histograms of the same gaps are equal however the gaps were added, but for gaps within a
    rounding error of a bucket's edge.
    """

    __slots__ = ("_counts", "count", "max_s", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (_TOP + 1)
        self.count = 0
        self.sum_s = 0.0
        self.max_s = 0.0

    def add(self, gap_s: float, count: int = 1) -> None:
        """Count a gap, `count` times. Raises ValueError when it is negative or not finite."""
        if GAP_FLOOR_S <= gap_s < GAP_CEILING_S:
            at = int(log(gap_s * _PER_FLOOR) * _PER_LOG_GROWTH) + 1
        else:
            at = _bucket(gap_s)
        self._counts[at] += count
        self.count += count
        self.sum_s += gap_s * count
        if gap_s > self.max_s:
            self.max_s = gap_s

    def add_ramp(self, first_s: float, step_s: float, steps: int, weight: int = 1) -> None:
        """Count `steps` gaps first, first + step, first + 2·step, ..., each `weight` times.

        This is what a batch of `weight` streams sees while nothing but its context grows. Cost:
        O(buckets touched), one for most ramps, whatever the number of steps. Raises ValueError
        when a gap would be negative or not finite.
        """
        if steps <= 0:
            return
        if step_s < 0.0:
            first_s, step_s = first_s + step_s * (steps - 1), -step_s
        last_s = first_s + step_s * (steps - 1)
        at, top = _bucket(first_s), _bucket(last_s)
        done = 0
        while at < top:
            # Bucket `at` takes the gaps up to its upper edge; an edge's own gap may go either way.
            edge_s = GAP_FLOOR_S * exp(at * _LOG_GROWTH)
            if first_s <= edge_s:
                until = _last_step_within(first_s, step_s, steps, edge_s) + 1
                self._counts[at] += (until - done) * weight
                done = until
            at += 1
        self._counts[top] += (steps - done) * weight
        self.count += steps * weight
        self.sum_s += (first_s + last_s) * 0.5 * steps * weight
        if last_s > self.max_s:
            self.max_s = last_s

    def merge(self, other: GapHistogram) -> None:
        """Add every gap of `other`."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self.count += other.count
        self.sum_s += other.sum_s
        self.max_s = max(self.max_s, other.max_s)

    @property
    def mean_s(self) -> float:
        """Return the mean gap, 0 when there is none."""
        return self.sum_s / self.count if self.count else 0.0

    def quantile(self, frac: float) -> float:
        """Return the gap below which the share `frac` lies: `percentile`, within 0.5 %.

        0 when there is no gap. Raises ValueError on a share outside 0 to 1. Cost O(buckets).
        """
        if not 0.0 <= frac <= 1.0:
            raise ValueError(f"a share lies between 0 and 1, not at {frac}")
        if not self.count:
            return 0.0
        position = frac * (self.count - 1)
        below = floor(position)
        if below >= self.count - 1:
            return self.max_s
        low_s, high_s = self._neighbours_s(below)
        return low_s + (high_s - low_s) * (position - below)

    def _neighbours_s(self, rank: int) -> tuple[float, float]:
        """Return about the gaps at `rank` and `rank + 1` (from 0) in ascending order."""
        seen, low_s = 0, -1.0
        for at, held in enumerate(self._counts):
            seen += held
            if low_s < 0.0 and seen > rank:
                low_s = self._middle_s(at)
            if seen > rank + 1:
                return low_s, self._middle_s(at)
        return low_s, self.max_s

    def _middle_s(self, at: int) -> float:
        if at == 0:
            return 0.0
        if at == _TOP:
            return self.max_s
        return min(GAP_FLOOR_S * exp((at - 0.5) * _LOG_GROWTH), self.max_s)


def _bucket(gap_s: float) -> int:
    """Return the bucket of a gap: 0 below the floor, _TOP from the ceiling on."""
    if GAP_FLOOR_S <= gap_s < GAP_CEILING_S:
        return int(log(gap_s * _PER_FLOOR) * _PER_LOG_GROWTH) + 1
    if 0.0 <= gap_s < GAP_FLOOR_S:
        return 0
    if GAP_CEILING_S <= gap_s < inf:
        return _TOP
    raise ValueError(f"a gap is a finite number of seconds >= 0, not {gap_s}")
