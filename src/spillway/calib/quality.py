"""Says in plain words how good a fit is, and refuses it when it is not good enough.

A router that trusts a bad profile breaks targets with confidence, so the answer is a verdict with a
reason and a remedy, not a table that everybody reads differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spillway.calib.fit import Errors, FitResult, noise, summary
from spillway.calib.regimes import (
    Regime,
    context_range,
    context_ranges,
    context_tokens,
    regime,
    region,
)
from spillway.calib.samples import EngineLimits, Head, Sample
from spillway.wire.profile import (
    PROFILE_SCHEMA_VERSION,
    Coefficients,
    FitError,
    ProfileFile,
    Provenance,
    Validity,
)

ERROR_LIMIT_FRAC = 0.10
REGION_STEPS_MIN = 5  # fewer held-out steps say nothing of a region
NOISE_GAP_FRAC = 0.01  # an error within so much of the noise is as good as it gets
BIAS_FRAC_MAX = 0.03
BIAS_CHANCE_FACTOR = 4.0  # a median of n errors is off by about their mean size / sqrt(n)
OPEN_FRAC_MAX = 0.1  # of a step's time, that the spread of one coefficient may leave open
BEYOND_FACTOR = 1.25

ADVICE = {
    Regime.DECODE: "look for other work on the machine, and for batches padded to fixed sizes "
    "(CUDA graphs); more decode steps come without --quick",
    Regime.SMALL: "small chunks may be padded, or cost a switch of kernels; give more time, so "
    "that more chunk sizes are tried",
    Regime.LARGE: "the engine may cut chunks otherwise than it is told here (--chunk-tokens), or "
    "serve other requests meanwhile",
    Regime.PREFILL: "long prompts may run through other kernels than short ones; drive prompts of "
    "the lengths you serve, with more time",
}


class RegionErrors(NamedTuple):
    """Errors of the steps of one kind. held_out: None when none of them was held out."""

    name: str
    steps: int
    held_out: Errors | None
    noise: Errors | None


class Verdict(NamedTuple):
    """accepted: the profile may be used. summary: one sentence. remarks: what else to know."""

    accepted: bool
    summary: str
    remarks: tuple[str, ...]


def by_regime(fit: FitResult) -> list[RegionErrors]:
    """Return the errors of each kind of step that was measured."""
    return list(_regions(fit, list(Regime), regime))


def by_context(fit: FitResult) -> list[RegionErrors]:
    """Return the errors of each range of contexts that was measured."""
    return list(_regions(fit, context_ranges(), context_range))


def judge(fit: FitResult, limits: EngineLimits, limit_frac: float = ERROR_LIMIT_FRAC) -> Verdict:
    """Return whether the mean error on held-out steps is within the limit, why not, and what to do.

    A refusal names the region with the largest error; so does an acceptance in which some region is
    above the limit.
    """
    mean_frac = fit.holdout.mean_frac
    worst = _worst_first(fit)
    bad = [one for one in worst if _mean_frac(one) > limit_frac]
    remarks: list[str] = []
    if mean_frac > limit_frac:
        said = f"Refused: held-out steps are predicted within {percent(mean_frac)} on average"
        said += f", above the limit of {limit_frac * 100:g} %"
        remarks += _blame(fit, worst[0], limit_frac)
    else:
        said = f"Good: held-out steps are predicted within {percent(mean_frac)} on average"
        said += f" (limit {limit_frac * 100:g} %)"
        remarks += [f"Above the limit in part: {_named(one)}." for one in bad[:2]]
    if fit.noise is not None:
        said += f"; repeats of one and the same step differ by {percent(fit.noise.mean_frac)}"
        if mean_frac <= min(limit_frac, fit.noise.mean_frac + NOISE_GAP_FRAC):
            said += ", so no law could do much better"
    remarks += _bias(fit)
    remarks += _vague(fit)
    remarks += _beyond(validity(fit.samples), limits)
    return Verdict(mean_frac <= limit_frac, f"{said}.", tuple(remarks))


def validity(samples: Sequence[Sample]) -> Validity:
    """Return the largest step among the samples."""
    return Validity(
        decode_seqs_max=max(1, *(one.decode_seqs for one in samples)),
        kv_tokens_max=max(1, *(one.kv_tokens for one in samples)),
        chunk_tokens_max=max(1, *(one.prefill_tokens for one in samples)),
        context_tokens_max=max(1, *(round(context_tokens(one)) for one in samples)),
    )


def profile_file(fit: FitResult, head: Head, notes: str = "") -> ProfileFile:
    """Return the fitted profile with everything a reader needs to judge it."""
    law, held_out = fit.profile, fit.holdout
    return ProfileFile(
        schema_version=PROFILE_SCHEMA_VERSION,
        name=law.name,
        coefficients=Coefficients(
            step_base_s=law.step_base_s,
            token_hinges=law.token_hinges,
            token_s=law.token_s,
            decode_seq_s=law.decode_seq_s,
            kv_token_s=law.kv_token_s,
            token_pair_s=law.token_pair_s,
        ),
        kv_bytes_per_token=law.kv_bytes_per_token,
        kv_capacity_tokens=head.limits.kv_capacity_tokens,
        fit_error=FitError(
            median_frac=held_out.median_frac,
            p95_frac=held_out.p95_frac,
            max_frac=held_out.max_frac,
            mean_frac=held_out.mean_frac,
            noise_frac=fit.noise.mean_frac if fit.noise else None,
            held_out=True,
        ),
        validity=validity(fit.samples),
        provenance=Provenance(
            source=f"spillway {head.spillway_version}: hinge law fitted to {fit.train.steps} steps "
            f"measured by {head.how} on {head.machine}; errors are those of {held_out.steps} steps "
            "held out",
            model=head.model,
            gpu=head.gpu,
            tensor_parallel=head.tensor_parallel,
            engine=head.engine,
            engine_version=head.engine_version,
            dtype=head.dtype,
            date=head.date,
            notes=notes,
        ),
    )


def percent(value_frac: float) -> str:
    """Return a share as it is written in a sentence, `2.5 %`."""
    return f"{value_frac * 100:.1f} %"


# --- what the verdict is made of -----------------------------------------------------------------


def _regions(
    fit: FitResult, names: Sequence[object], name_of: Callable[[Sample], object]
) -> Iterator[RegionErrors]:
    own = [name_of(sample) for sample in fit.samples]
    for name in names:
        rows = np.array([at for at, one in enumerate(own) if one == name], dtype=np.int64)
        if not len(rows):
            continue
        held = rows[fit.held_out[rows]]
        yield RegionErrors(
            str(name),
            len(rows),
            summary(fit.errors[held]) if len(held) else None,
            noise(fit.measured_s[rows], fit.predicted_s[rows], [fit.shapes[row] for row in rows]),
        )


def _worst_first(fit: FitResult) -> list[RegionErrors]:
    """Return regimes and regions with enough held-out steps, or else all regimes, worst first."""
    everywhere = sorted({region(sample) for sample in fit.samples})
    candidates = [*_regions(fit, everywhere, region), *by_regime(fit)]
    tested = [one for one in candidates if one.held_out]
    enough = [one for one in tested if one.held_out and one.held_out.steps >= REGION_STEPS_MIN]
    return sorted(enough or tested, key=lambda one: -_mean_frac(one))


def _mean_frac(one: RegionErrors) -> float:
    return one.held_out.mean_frac if one.held_out else 0.0


def _blame(fit: FitResult, worst: RegionErrors, limit_frac: float) -> Iterator[str]:
    noisy = fit.noise is not None and fit.noise.mean_frac + NOISE_GAP_FRAC >= fit.holdout.mean_frac
    kind = next(one for one in Regime if worst.name.startswith(one))
    advice = "" if noisy else f" What may help: {ADVICE[kind]}."
    yield f"The worst region: {_named(worst)}.{advice}"
    if fit.noise is not None and fit.noise.mean_frac > limit_frac / 2:
        yield (
            f"The measurement itself is noisy: repeats differ by {percent(fit.noise.mean_frac)}. "
            "Keep other work off the machine, or pin the engine's cores, and profile again; "
            "--clock cpu, where the engine reports it, leaves out time that others took."
        )
    yield (
        f"The limit is --error-limit {limit_frac:g}; targets break by as much as the profile errs."
    )


def _named(one: RegionErrors) -> str:
    assert one.held_out is not None
    said = f"{one.name}: {percent(one.held_out.mean_frac)} over {one.held_out.steps} held-out steps"
    if one.noise is not None:
        said += f", repeats differ by {percent(one.noise.mean_frac)}"
    return said


def _bias(fit: FitResult) -> Iterator[str]:
    """Steps that last longer than the law says break targets; shorter ones only waste room."""
    for one in by_regime(fit):
        errors = one.held_out
        if errors is None or errors.steps < REGION_STEPS_MIN:
            continue
        chance_frac = BIAS_CHANCE_FACTOR * errors.mean_frac / errors.steps**0.5
        if errors.bias_frac < -max(BIAS_FRAC_MAX, chance_frac):
            yield (
                f"{one.name}: the law is too optimistic there, by {percent(-errors.bias_frac)} in "
                "the middle; leave that much more margin."
            )


def _vague(fit: FitResult) -> Iterator[str]:
    """Name coefficients that the samples leave so open that it matters for some step.

    Those of scheduled tokens are left out: they make up for each other from hinge to hinge.
    """
    factors = {
        "per step": np.ones(len(fit.samples)),
        "per sequence in decode": np.array([float(one.decode_seqs) for one in fit.samples]),
        "per KV token": np.array([float(one.kv_tokens) for one in fit.samples]),
        "per token pair": np.array([one.prefill_token_pairs for one in fit.samples]),
    }
    for one in fit.coefficients:
        if one.name not in factors:
            continue
        open_frac = (one.high_s - one.low_s) * float((factors[one.name] / fit.predicted_s).max())
        if open_frac > OPEN_FRAC_MAX:
            yield (
                f"What a step costs {one.name} is not well known: refits to other steps leave up "
                f"to {percent(open_frac)} of a step's time open. More steps, or a wider range of "
                "them, would settle it."
            )


def _beyond(seen: Validity, limits: EngineLimits) -> Iterator[str]:
    """Warn where the engine can go further than it was measured."""
    room = {
        "decode sequences": (seen.decode_seqs_max, limits.streams_max),
        "KV tokens": (seen.kv_tokens_max, limits.kv_capacity_tokens),
        "tokens of one chunk": (seen.chunk_tokens_max, limits.chunk_tokens_max),
        "tokens of one context": (seen.context_tokens_max, limits.context_tokens_max),
    }
    beyond = [
        f"{had:,} {what} (the engine takes {can:,})"
        for what, (had, can) in room.items()
        if can > BEYOND_FACTOR * had
    ]
    if beyond:
        yield f"Extrapolates beyond {'; '.join(beyond)}: nothing was measured there."
