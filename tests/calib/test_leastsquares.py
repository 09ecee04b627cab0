"""The solver against known coefficients, and the choice of hinges."""

from __future__ import annotations

import numpy as np
import pytest

from builders import make_profile
from calibsamples import samples_of
from spillway.calib.leastsquares import (
    FOLDS,
    HINGES,
    HINGES_TOKENS,
    KV,
    PAIRS,
    STEP,
    TOKENS,
    Rows,
    Table,
    choose_hinges,
    make_table,
    solve,
)
from spillway.calib.regimes import shape
from spillway.calib.samples import Sample
from spillway.core.latency import LatencyProfile

ADDITIVE = make_profile(token_hinges=(0,), token_s=(50e-6,))
HINGED = make_profile(token_hinges=(0, 128, 1024), token_s=(5e-6, 40e-6, 20e-6))


def column(hinge_tokens: int) -> int:
    return HINGES.start + HINGES_TOKENS.index(hinge_tokens)


def table_of(samples: list[Sample]) -> Table:
    measured_s = np.array([sample.step_s for sample in samples])
    return make_table(samples, measured_s, [shape(sample) for sample in samples])


def folds_of(table: Table) -> list[Rows]:
    return [np.arange(fold, len(table.measured_s), FOLDS) for fold in range(FOLDS)]


def coefficients(profile: LatencyProfile) -> list[float]:
    slopes = dict(zip(profile.token_hinges, profile.token_s, strict=True))
    hinges = [slopes.get(tokens, 0.0) for tokens in HINGES_TOKENS]
    resident = [profile.kv_token_s, profile.token_pair_s, profile.decode_seq_s]
    return [profile.step_base_s, slopes[0], *hinges, *resident]


@pytest.mark.parametrize("profile", [ADDITIVE, HINGED])
def test_exact_samples_give_the_exact_law(profile: LatencyProfile) -> None:
    table = table_of(samples_of(profile))
    solution = solve(table, list(HINGES))
    assert table.columns @ solution == pytest.approx(table.measured_s, rel=1e-6)
    assert solution.tolist() == pytest.approx(coefficients(profile), rel=1e-4, abs=1e-12)


def test_noise_does_not_bias_the_law() -> None:
    """Relative to the measurement, 15 % of noise would pull every coefficient 4 % down."""
    table = table_of(samples_of(ADDITIVE, noise_frac=0.15, quick=False))
    solution = solve(table, ())
    assert solution[STEP] == pytest.approx(ADDITIVE.step_base_s, rel=0.03)
    assert solution[TOKENS] == pytest.approx(ADDITIVE.token_s[0], rel=0.03)


def test_stalled_steps_barely_move_the_law() -> None:
    table = table_of(samples_of(HINGED, noise_frac=0.03, stalls_frac=0.05))
    solution = solve(table, (column(128), column(1024)))
    assert solution[STEP] == pytest.approx(HINGED.step_base_s, rel=0.03)
    assert solution[KV] == pytest.approx(HINGED.kv_token_s, rel=0.05)
    assert solution[PAIRS] == pytest.approx(HINGED.token_pair_s, rel=0.1)


def test_no_coefficient_is_negative_whatever_the_samples() -> None:
    # Larger batches are faster here, which no law of ours can say.
    samples = [
        Sample(decode_seqs=seqs, kv_tokens=100 * seqs, step_s=0.02 / seqs)
        for seqs in (1, 2, 4, 8, 16, 32)
    ]
    assert (solve(table_of(samples), ()) >= 0).all()


def test_hinges_that_are_there_are_found() -> None:
    table = table_of(samples_of(HINGED, noise_frac=0.02))
    assert choose_hinges(table, folds_of(table)) == (column(128), column(1024))


@pytest.mark.parametrize("noise_frac", [0.0, 0.05])
def test_without_a_knee_there_is_no_hinge(noise_frac: float) -> None:
    table = table_of(samples_of(ADDITIVE, noise_frac=noise_frac))
    assert choose_hinges(table, folds_of(table)) == ()


def test_a_hinge_needs_steps_on_both_sides() -> None:
    samples = [one for one in samples_of(HINGED) if one.decode_seqs + one.prefill_tokens < 1024]
    table = table_of(samples)
    assert column(1024) not in choose_hinges(table, folds_of(table))


def test_many_repeats_of_one_step_count_no_more_than_a_few() -> None:
    once = Sample(decode_seqs=1, kv_tokens=100, step_s=0.01)
    other = Sample(decode_seqs=9, kv_tokens=9000, step_s=0.02)
    table = table_of([once] * 80 + [other] * 2)
    assert table.weights[:80].sum() == pytest.approx(8.0)
    assert table.weights[80:].tolist() == [1.0, 1.0]
