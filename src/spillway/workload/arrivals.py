"""When requests arrive: processes that draw ascending times for a rate and a duration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gamma, isfinite
from random import Random
from typing import Protocol

from spillway.core.errors import ConfigError

ARRIVALS_MAX = 10_000_000  # expected; beyond this a rate or duration is a slip of the pen
WARM_UP_ARRIVALS = 100  # before time 0, so that a bursty process has forgotten how it started
WEIBULL_SHAPE_MIN = 0.01  # below it the mean of a standard one is beyond what a float holds
DWELL_S_MIN = 1e-3  # shorter spells are no bursts, and their number would know no bound
DWELL_SHAPE = 4.0  # gamma shape of on and off times: CV 0.5, so that bursts are alike but not equal


class Arrivals(Protocol):
    """A point process."""

    def draw(self, rng: Random, rate_per_s: float, duration_s: float) -> list[float]:
        """Return ascending times in [0, duration_s), `rate_per_s` of them a second on average.

        Raises ConfigError unless both are finite and above 0, and not absurd together.
        """
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals: gaps are exponential, CV 1."""

    def draw(self, rng: Random, rate_per_s: float, duration_s: float) -> list[float]:
        _check(rate_per_s, duration_s)
        return _poisson(rng, rate_per_s, 0.0, duration_s)


@dataclass(frozen=True, slots=True)
class Gamma:
    """A renewal process whose gaps have coefficient of variation `cv`: above 1 it clumps."""

    cv: float

    def __post_init__(self) -> None:
        if not (isfinite(self.cv) and self.cv > 0):
            raise ConfigError(f"gamma arrivals with CV {self.cv}; it must be above 0")

    def draw(self, rng: Random, rate_per_s: float, duration_s: float) -> list[float]:
        _check(rate_per_s, duration_s)
        shape = 1.0 / (self.cv * self.cv)
        scale_s = 1.0 / (rate_per_s * shape)
        return _renewals(lambda: rng.gammavariate(shape, scale_s), rate_per_s, duration_s)


@dataclass(frozen=True, slots=True)
class Weibull:
    """A renewal process whose gaps are Weibull: below shape 1 it clumps, at 1 it is Poisson."""

    shape: float

    def __post_init__(self) -> None:
        if not (isfinite(self.shape) and self.shape >= WEIBULL_SHAPE_MIN):
            raise ConfigError(
                f"Weibull arrivals with shape {self.shape}; at least {WEIBULL_SHAPE_MIN}"
            )

    def draw(self, rng: Random, rate_per_s: float, duration_s: float) -> list[float]:
        _check(rate_per_s, duration_s)
        scale_s = 1.0 / (rate_per_s * gamma(1.0 + 1.0 / self.shape))
        return _renewals(lambda: rng.weibullvariate(scale_s, self.shape), rate_per_s, duration_s)


@dataclass(frozen=True, slots=True)
class OnOff:
    """Bursts: `peak` times the mean rate for about `on_s`, then calm for about `off_s`.

    A Markov-modulated Poisson process but for its dwell times, which are gamma with CV 0.5. The
    calm rate is what keeps the mean, so `peak` is at most (on_s + off_s) / on_s.
    """

    peak: float
    on_s: float
    off_s: float

    def __post_init__(self) -> None:
        if not (isfinite(self.peak) and self.peak > 0):
            raise ConfigError(f"on/off arrivals with peak {self.peak}; it must be above 0")
        for name, dwell_s in (("on_s", self.on_s), ("off_s", self.off_s)):
            if not (isfinite(dwell_s) and dwell_s >= DWELL_S_MIN):
                raise ConfigError(f"on/off arrivals with {name} {dwell_s}; at least {DWELL_S_MIN}")
        if self.peak * self.on_s > self.on_s + self.off_s:
            raise ConfigError(
                f"on/off arrivals with peak {self.peak}: the bursts alone exceed the mean rate; "
                f"at most {(self.on_s + self.off_s) / self.on_s:g} for these times"
            )

    def draw(self, rng: Random, rate_per_s: float, duration_s: float) -> list[float]:
        _check(rate_per_s, duration_s)
        period_s = self.on_s + self.off_s
        calm = (period_s - self.peak * self.on_s) / self.off_s
        times_s: list[float] = []
        bursting = rng.random() < self.on_s / period_s
        # The first spell is met in its middle, wherever that is.
        now_s, share = 0.0, rng.random()
        while now_s < duration_s:
            mean_s = self.on_s if bursting else self.off_s
            end_s = now_s + share * rng.gammavariate(DWELL_SHAPE, mean_s / DWELL_SHAPE)
            spell_rate_per_s = rate_per_s * (self.peak if bursting else calm)
            times_s += _poisson(rng, spell_rate_per_s, now_s, min(end_s, duration_s))
            now_s, share, bursting = end_s, 1.0, not bursting
        return times_s


def _renewals(draw_gap_s: Callable[[], float], rate_per_s: float, duration_s: float) -> list[float]:
    times_s, now_s = [], -WARM_UP_ARRIVALS / rate_per_s
    while (now_s := now_s + draw_gap_s()) < duration_s:
        if now_s >= 0.0:
            times_s.append(now_s)
    return times_s


def _poisson(rng: Random, rate_per_s: float, from_s: float, to_s: float) -> list[float]:
    times_s: list[float] = []
    if rate_per_s <= 0.0:
        return times_s
    now_s = from_s
    while (now_s := now_s + rng.expovariate(rate_per_s)) < to_s:
        times_s.append(now_s)
    return times_s


def _check(rate_per_s: float, duration_s: float) -> None:
    for name, value in (("rate", rate_per_s), ("duration", duration_s)):
        if not (isfinite(value) and value > 0):
            raise ConfigError(f"a workload with {name} {value}; it must be above 0")
    if rate_per_s * duration_s > ARRIVALS_MAX:
        raise ConfigError(
            f"{rate_per_s} requests/s for {duration_s} s are more than {ARRIVALS_MAX} requests; "
            "lower the rate or the duration"
        )
