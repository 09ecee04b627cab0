"""Length distributions: their moments, their bounds, their refusals."""

from __future__ import annotations

from statistics import fmean, median, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import ConfigError
from spillway.workload.lengths import BoundedPareto, Constant, Exponential, Lengths, Lognormal
from spillway.workload.seeds import stream

DRAWS = 20_000


def draw(lengths: Lengths, count: int = DRAWS) -> list[int]:
    rng = stream(1, "lengths")
    return [lengths.draw(rng) for _ in range(count)]


def test_constant_is_constant():
    assert set(draw(Constant(77), 10)) == {77}


def test_exponential_has_its_mean_and_cv_1():
    tokens = draw(Exponential(500.0))
    assert fmean(tokens) == pytest.approx(500, rel=0.03)
    assert pstdev(tokens) / fmean(tokens) == pytest.approx(1.0, abs=0.03)


def test_lognormal_has_its_mean_cv_and_median():
    tokens = draw(Lognormal(2_000.0, cv=1.2))
    assert fmean(tokens) == pytest.approx(2_000, rel=0.03)
    assert pstdev(tokens) / fmean(tokens) == pytest.approx(1.2, rel=0.12)
    assert median(tokens) == pytest.approx(2_000 / (1 + 1.2**2) ** 0.5, rel=0.03)


def test_bounded_pareto_has_its_tail_and_bounds():
    tokens = draw(BoundedPareto(1.1, 100, 10_000))
    assert min(tokens) >= 100
    assert max(tokens) <= 10_000
    # P(X > x) = (x^-a - H^-a) / (L^-a - H^-a)
    beyond = (1_000**-1.1 - 10_000**-1.1) / (100**-1.1 - 10_000**-1.1)
    assert sum(value > 1_000 for value in tokens) / DRAWS == pytest.approx(beyond, rel=0.1)


@given(st.floats(0.01, 1e6), st.floats(0.01, 10.0), st.integers(1, 10_000), st.integers(0, 2**32))
def test_every_draw_is_between_1_and_the_maximum(
    mean_tokens: float, cv: float, tokens_max: int, seed: int
):
    rng = stream(seed, "lengths")
    for lengths in (Exponential(mean_tokens, tokens_max), Lognormal(mean_tokens, cv, tokens_max)):
        tokens = lengths.draw(rng)
        assert isinstance(tokens, int)
        assert 1 <= tokens <= tokens_max


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_impossible_parameters_are_refused(bad: float):
    makers = [
        lambda: Constant(bad),
        lambda: Exponential(bad),
        lambda: Exponential(10.0, bad),
        lambda: Lognormal(bad, 1.0),
        lambda: Lognormal(10.0, bad),
        lambda: BoundedPareto(bad, 1, 2),
        lambda: BoundedPareto(1.0, bad, 2),
        lambda: BoundedPareto(1.0, 5, 5),
    ]
    for make in makers:
        with pytest.raises(ConfigError, match="must be above"):
            make()
