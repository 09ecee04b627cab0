"""The verdict: accepted or refused, with the region named, and a profile that explains itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import structs

from builders import make_profile
from calibsamples import make_head, make_limits, samples_of
from spillway.calib.fit import FitResult, fit_steps
from spillway.calib.quality import by_context, by_regime, judge, profile_file, validity
from spillway.calib.regimes import Regime
from spillway.calib.samples import Sample
from spillway.wire.profile import load_profile, load_profile_file, write_profile_file

pytestmark = pytest.mark.slow  # each fit is hundreds of small ones

HINGED = make_profile(token_hinges=(0, 128, 1024), token_s=(5e-6, 40e-6, 20e-6))
SEEN = make_limits(kv_capacity_tokens=150_000, context_tokens_max=16_384)


def fitted(samples: list[Sample]) -> FitResult:
    return fit_steps(samples, name="fitted", kv_bytes_per_token=131_072)


@pytest.fixture(scope="module")
def good() -> FitResult:
    return fitted(samples_of(HINGED, noise_frac=0.03))


@pytest.fixture(scope="module")
def bad() -> FitResult:
    """Decode steps over long contexts obey no law at all: they alternate between two speeds."""
    samples = [
        structs.replace(one, step_s=one.step_s * (0.6 if at % 2 else 1.6))
        if not one.prefill_tokens and one.kv_tokens > 2048 * one.decode_seqs
        else one
        for at, one in enumerate(samples_of(HINGED, noise_frac=0.02))
    ]
    return fitted(samples)


def test_a_good_fit_is_accepted_in_one_sentence(good: FitResult) -> None:
    verdict = judge(good, SEEN)
    assert verdict.accepted
    assert verdict.summary.startswith("Good: held-out steps are predicted within ")
    assert "so no law could do much better" in verdict.summary
    assert verdict.remarks == ()


def test_a_refusal_names_the_region_and_a_remedy(bad: FitResult) -> None:
    verdict = judge(bad, SEEN)
    assert not verdict.accepted
    assert verdict.summary.startswith("Refused: ")
    assert "limit of 10 %" in verdict.summary
    told = " ".join(verdict.remarks)
    assert "The worst region: decode only, context 2,048 to 8,192: " in told
    assert "profile again" in told  # repeats differ as much as the law errs
    assert "--error-limit" in told


def test_a_law_that_errs_where_repeats_agree_gets_advice_for_that_regime() -> None:
    # Small chunks padded to 256 tokens: no repeat differs, yet no convex law fits.
    samples = [
        structs.replace(one, step_s=one.step_s * 2.5)
        if one.decode_seqs and 0 < one.prefill_tokens <= 100
        else one
        for one in samples_of(HINGED)
    ]
    verdict = judge(fitted(samples), SEEN, limit_frac=0.02)
    assert not verdict.accepted
    (worst,) = [line for line in verdict.remarks if line.startswith("The worst region: ")]
    assert worst.startswith("The worst region: mixed, chunk up to 256")
    assert "small chunks may be padded" in worst


def test_the_limit_is_the_operators(good: FitResult) -> None:
    assert not judge(good, SEEN, limit_frac=0.001).accepted
    assert judge(good, SEEN, limit_frac=0.5).accepted


def test_an_accepted_fit_still_names_what_is_above_the_limit(bad: FitResult) -> None:
    verdict = judge(bad, SEEN, limit_frac=bad.holdout.mean_frac + 0.01)
    assert verdict.accepted
    assert any("decode only, context 2,048" in line for line in verdict.remarks)


def test_optimism_is_called_out() -> None:
    found = fitted(samples_of(HINGED))
    slow = [at for at, one in enumerate(found.samples) if not one.prefill_tokens]
    found.measured_s[slow] *= 1.08
    told = " ".join(judge(found, SEEN).remarks)
    assert "decode only: the law is too optimistic there, by 7" in told


def test_the_engines_room_beyond_the_measured_range_is_called_extrapolation(
    good: FitResult,
) -> None:
    far = make_limits(kv_capacity_tokens=2_000_000, context_tokens_max=131_072)
    told = " ".join(judge(good, far).remarks)
    assert "KV tokens (the engine takes 2,000,000)" in told
    assert "tokens of one context (the engine takes 131,072)" in told


def test_a_coefficient_that_the_samples_do_not_determine_is_named() -> None:
    # Contexts grow with the batch, and it is noisy: cost per sequence or per KV token?
    samples = [
        one
        for one in samples_of(HINGED, noise_frac=0.15)
        if not one.decode_seqs or one.kv_tokens < 600 * one.decode_seqs
    ]
    told = " ".join(judge(fitted(samples), SEEN, limit_frac=0.9).remarks)
    assert "What a step costs per sequence in decode is not well known" in told


def test_errors_are_told_by_regime_and_by_context(good: FitResult) -> None:
    regimes = by_regime(good)
    assert [one.name for one in regimes] == [*Regime]
    assert sum(one.steps for one in regimes) == len(good.samples)
    held_out = [one.held_out for one in regimes]
    assert sum(errors.steps for errors in held_out if errors) == good.holdout.steps
    contexts = by_context(good)
    assert sum(one.steps for one in contexts) == len(good.samples)
    assert contexts[0].name == "context up to 512"
    assert regimes[0].noise is not None
    assert regimes[0].noise.mean_frac == pytest.approx(0.024, rel=0.3)


def test_the_profile_is_loaded_as_it_was_fitted(good: FitResult, tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    write_profile_file(path, profile_file(good, make_head(gpu="a GPU", dtype="bfloat16"), "a note"))
    assert load_profile(str(path)) == good.profile
    file = load_profile_file(str(path))
    assert file.fit_error is not None
    assert file.fit_error.held_out
    assert file.fit_error.mean_frac == pytest.approx(good.holdout.mean_frac)
    assert file.fit_error.noise_frac is not None
    assert file.kv_capacity_tokens == 400_000
    told = file.provenance
    assert (told.model, told.gpu, told.dtype) == ("fake-llama", "a GPU", "bfloat16")
    assert (told.engine, told.engine_version, told.date) == ("vllm", "0.32.0", "2026-01-01")
    assert f"{good.holdout.steps} steps held out" in told.source
    assert "step reports" in told.source
    assert told.notes == "a note"


def test_validity_is_the_largest_step_seen() -> None:
    seen = validity(
        [
            Sample(decode_seqs=4, kv_tokens=4000, step_s=0.01),
            Sample(decode_seqs=1, kv_tokens=9000, step_s=0.01),
            Sample(
                decode_seqs=0,
                kv_tokens=0,
                prefill_tokens=100,
                prefill_token_pairs=100 * (5000 + 50.5),
                step_s=0.01,
            ),
        ]
    )
    assert (seen.decode_seqs_max, seen.kv_tokens_max) == (4, 9000)
    assert (seen.chunk_tokens_max, seen.context_tokens_max) == (100, 9000)
