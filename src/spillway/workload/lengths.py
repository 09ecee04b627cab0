"""How long prompts and outputs are: distributions over whole numbers of tokens, at least 1."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, isfinite, log, log1p, sqrt
from random import Random
from typing import Protocol

from spillway.core.errors import ConfigError

TOKENS_MAX = 131_072  # the longest context of the models the built-in profiles describe


class Lengths(Protocol):
    """A distribution of token counts."""

    def draw(self, rng: Random) -> int:
        """Return one length, at least 1 token."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """Always `tokens`."""

    tokens: int

    def __post_init__(self) -> None:
        _check_above_0("tokens", self.tokens)

    def draw(self, rng: Random) -> int:
        del rng
        return self.tokens


@dataclass(frozen=True, slots=True)
class Exponential:
    """Many short, few long: standard deviation equal to the mean, cut at `tokens_max`."""

    mean_tokens: float
    tokens_max: int = TOKENS_MAX

    def __post_init__(self) -> None:
        _check_above_0("mean_tokens", self.mean_tokens)
        _check_above_0("tokens_max", self.tokens_max)

    def draw(self, rng: Random) -> int:
        return _whole(rng.expovariate(1.0 / self.mean_tokens), self.tokens_max)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """A long right tail of a chosen weight: `cv` is standard deviation over mean, before the cut.

    With sigma² = ln(1 + cv²) the median is mean / sqrt(1 + cv²).
    """

    mean_tokens: float
    cv: float
    tokens_max: int = TOKENS_MAX

    def __post_init__(self) -> None:
        _check_above_0("mean_tokens", self.mean_tokens)
        _check_above_0("cv", self.cv)
        _check_above_0("tokens_max", self.tokens_max)

    def draw(self, rng: Random) -> int:
        variance = log1p(self.cv * self.cv)
        mu = log(self.mean_tokens) - variance / 2
        return _whole(exp(rng.gauss(mu, sqrt(variance))), self.tokens_max)


@dataclass(frozen=True, slots=True)
class BoundedPareto:
    """A power law with exponent `alpha` between two lengths; the smaller, the heavier the tail."""

    alpha: float
    tokens_min: int
    tokens_max: int = TOKENS_MAX

    def __post_init__(self) -> None:
        _check_above_0("alpha", self.alpha)
        _check_above_0("tokens_min", self.tokens_min)
        if self.tokens_max <= self.tokens_min:
            raise ConfigError("BoundedPareto: tokens_max must be above tokens_min")

    def draw(self, rng: Random) -> int:
        low, high = self.tokens_min**-self.alpha, self.tokens_max**-self.alpha
        return _whole((low - rng.random() * (low - high)) ** (-1.0 / self.alpha), self.tokens_max)


def _whole(tokens: float, tokens_max: int) -> int:
    return max(1, min(round(tokens), tokens_max))


def _check_above_0(name: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise ConfigError(f"a length distribution with {name} {value}; it must be above 0")
