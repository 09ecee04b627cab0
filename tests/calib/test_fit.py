"""The fit against engines with known coefficients, and its honesty about what it held out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import structs

from builders import make_profile
from calibsamples import samples_of
from spillway.calib.fit import FitResult, fit_steps, noise, summary
from spillway.calib.regimes import Regime, regime
from spillway.calib.samples import Sample
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s, tokens_s
from spillway.wire.profile import builtin_names, load_profile

pytestmark = pytest.mark.slow  # each fit is hundreds of small ones

HINGED = make_profile(token_hinges=(0, 128, 1024), token_s=(5e-6, 40e-6, 20e-6))


DENSE = [name for name in builtin_names() if min(load_profile(name).token_s) >= 0]


def fitted(samples: list[Sample], **changes: Any) -> FitResult:
    return fit_steps(samples, **({"name": "fitted", "kv_bytes_per_token": 131_072} | changes))


@pytest.fixture(scope="module")
def exact() -> FitResult:
    """A fit to samples without noise."""
    return fitted(samples_of(HINGED))


@pytest.mark.parametrize("name", DENSE)
def test_each_built_in_law_is_recovered(name: str) -> None:
    """But for mixtures of experts: the fit knows laws that bend upwards alone."""
    true = load_profile(name)
    found = fitted(samples_of(true))
    assert found.holdout.mean_frac < 0.003  # their hinges may lie between ours
    assert found.profile.kv_token_s == pytest.approx(true.kv_token_s, rel=0.02)
    assert found.profile.token_pair_s == pytest.approx(true.token_pair_s, rel=0.02)
    assert tokens_s(found.profile, 2048) == pytest.approx(tokens_s(true, 2048), rel=0.02)
    assert found.profile.kv_bytes_per_token == 131_072


def test_what_a_sequence_in_decode_costs_beside_its_token_is_recovered() -> None:
    """As on a processor, where sampling and the engine's books do not hide behind kernels."""
    true = make_profile(token_s=(130e-6,), token_hinges=(0,), decode_seq_s=280e-6)
    found = fitted(samples_of(true))
    assert found.profile.decode_seq_s == pytest.approx(280e-6, rel=0.02)
    assert found.profile.token_s[0] == pytest.approx(130e-6, rel=0.02)
    assert found.holdout.mean_frac < 0.003


def test_noise_and_stalls_are_survived_and_reported() -> None:
    found = fitted(samples_of(HINGED, noise_frac=0.05, stalls_frac=0.03, quick=False))
    for seqs, kv, chunk, context in ((1, 128, 0, 0), (64, 120_000, 0, 0), (16, 9000, 512, 4096)):
        true_s = step_s(HINGED, seqs, kv, chunk, context)
        assert step_s(found.profile, seqs, kv, chunk, context) == pytest.approx(true_s, rel=0.03)
    assert found.noise is not None
    # The law is as good as the measurement, and the measurement is as noisy as it was made.
    assert found.holdout.mean_frac == pytest.approx(found.noise.mean_frac, abs=0.015)
    assert 0.03 < found.noise.median_frac < 0.045
    assert found.holdout.max_frac > 0.4  # a stalled step is a missed step, and is said to be


def test_coefficients_come_with_a_spread_around_them() -> None:
    found = fitted(samples_of(HINGED, noise_frac=0.05))
    assert [one.name for one in found.coefficients] == [
        "per step",
        "per scheduled token",
        "per token above 128",
        "per token above 1024",
        "per sequence in decode",
        "per KV token",
        "per token pair",
    ]
    for one in found.coefficients:
        assert one.low_s <= one.high_s
    base = found.coefficients[0]
    assert base.low_s < HINGED.step_base_s < base.high_s
    assert base.high_s - base.low_s < 0.1 * HINGED.step_base_s


def test_whole_shapes_are_held_out_of_every_regime(exact: FitResult) -> None:
    found = exact
    held = {kind for kind, out in zip(found.shapes, found.held_out, strict=True) if out}
    kept = {kind for kind, out in zip(found.shapes, found.held_out, strict=True) if not out}
    assert not held & kept
    assert len(held) == pytest.approx(0.3 * len(held | kept), abs=2)
    assert {regime(one) for one, out in zip(found.samples, found.held_out, strict=True) if out} == (
        set(Regime)
    )
    assert found.train.steps + found.holdout.steps == len(found.samples)


def test_the_seed_decides_what_is_held_out_and_the_same_seed_repeats_the_fit() -> None:
    samples = samples_of(HINGED, noise_frac=0.05)
    first, again, other = (fitted(samples, seed=seed) for seed in (1, 1, 2))
    assert first.profile == again.profile
    assert first.coefficients == again.coefficients
    assert (first.held_out != other.held_out).any()


def test_held_out_steps_have_no_part_in_the_law(exact: FitResult) -> None:
    samples = samples_of(HINGED)
    spoilt = fitted(
        [
            structs.replace(one, step_s=one.step_s * 3.0) if out else one
            for one, out in zip(samples, exact.held_out, strict=True)
        ]
    )
    assert spoilt.profile == exact.profile
    assert spoilt.holdout.mean_frac == pytest.approx(2 / 3, rel=0.01)


def test_processor_time_is_fitted_when_asked_for() -> None:
    samples = samples_of(HINGED)  # half of the wall-clock time
    found = fitted(samples, clock="cpu")
    assert found.profile.step_base_s == pytest.approx(HINGED.step_base_s / 2, rel=0.01)
    without = [structs.replace(one, cpu_s=0.0) for one in samples]
    with pytest.raises(ConfigError, match="--clock wall"):
        fitted(without, clock="cpu")


@pytest.mark.parametrize(
    ("kept", "fault"),
    [
        (lambda one: one.decode_seqs == 64 and one.prefill_tokens > 2000, "too few to fit"),
        (lambda one: one.prefill_tokens or one.decode_seqs == 4, "one batch size only"),
        (lambda one: not one.prefill_tokens, "too few chunk sizes"),
    ],
)
def test_samples_that_cannot_tell_the_coefficients_apart_are_refused(kept, fault: str) -> None:
    few = [one for one in samples_of(HINGED, quick=False) if kept(one)]
    with pytest.raises(ConfigError, match=fault):
        fitted(few)


def test_a_share_to_hold_out_must_be_one() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        fitted(samples_of(HINGED), holdout_frac=1.0)
    with pytest.raises(ConfigError, match="holds no step out"):
        fitted(samples_of(HINGED), holdout_frac=0.001)


def test_summary_of_errors() -> None:
    errors = summary(np.array([-0.1, 0.2, -0.3, 0.0]))
    assert errors.steps == 4
    assert errors.mean_frac == pytest.approx(0.15)
    assert errors.median_frac == pytest.approx(0.15)
    assert errors.max_frac == pytest.approx(0.3)
    assert errors.bias_frac == pytest.approx(-0.05)


def test_noise_is_what_repeats_differ_by_and_not_what_the_law_is_off_by(exact: FitResult) -> None:
    none = noise(exact.measured_s, exact.predicted_s * 1.5, exact.shapes)
    assert none is not None
    assert none.max_frac < 1e-5
    measured_s, predicted_s = np.tile(exact.measured_s, 5), np.tile(exact.predicted_s * 1.5, 5)
    factors = np.exp(np.random.default_rng(1).normal(0, 0.05, len(measured_s)))
    some = noise(measured_s * factors, predicted_s, exact.shapes * 5)
    assert some is not None
    assert some.mean_frac == pytest.approx(0.05 * (2 / np.pi) ** 0.5, rel=0.05)


def test_without_repeats_no_noise_is_claimed(exact: FitResult) -> None:
    rows = sorted({kind: at for at, kind in enumerate(exact.shapes)}.values())
    kinds = [exact.shapes[row] for row in rows]
    assert noise(exact.measured_s[rows], exact.predicted_s[rows], kinds) is None


def test_repeats_of_a_shape_count_once_by_their_median() -> None:
    """A shape repeated often, and stalled at times, weighs no more than one that came once."""
    samples = samples_of(HINGED, noise_frac=0.05)
    often = [structs.replace(samples[0], step_s=samples[0].step_s * at) for at in (1, 1, 1, 9, 9)]
    found = fitted([*samples, *often * 4], holdout_frac=0.9)
    held = {kind for kind, out in zip(found.shapes, found.held_out, strict=True) if out}
    assert found.holdout_shapes.steps == len(held) < found.holdout.steps
    assert found.holdout_shapes.max_frac < 0.4 < found.holdout.max_frac
