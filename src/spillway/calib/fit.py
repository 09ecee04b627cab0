"""Fits a latency profile to samples and judges it on steps that it was not fitted to.

Whole shapes are held out, not single steps: a repeat of a step that the law was fitted to would
flatter it. Chance decides which, by a seed, evenly over the regimes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from random import Random
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spillway.calib.leastsquares import (
    FOLDS,
    HINGES,
    HINGES_TOKENS,
    KV,
    PAIRS,
    SEQS,
    STEP,
    TOKENS,
    Floats,
    Rows,
    Table,
    choose_hinges,
    make_table,
    solve,
)
from spillway.calib.regimes import Regime, Shape, regime, shape
from spillway.calib.samples import Sample
from spillway.core.errors import ConfigError
from spillway.core.latency import LatencyProfile
from spillway.stats import percentile
from spillway.workload.seeds import stream

SAMPLES_MIN, SHAPES_MIN = 40, 20
REPEATS_MIN = 4
MEDIAN_VARIANCE = 1.4  # of four to ten normal values; pi / 2 for very many
SPREAD_DRAWS = 100
SPREAD_FRACS = (0.05, 0.95)

StepClock = Literal["wall", "cpu"]


class Errors(NamedTuple):
    """Relative errors of some steps, predicted / measured - 1.

    mean_frac (the mean absolute percentage error), median_frac, p95_frac, max_frac: of their sizes.
    bias_frac: their median with its sign; positive where the law says too much.
    """

    steps: int
    mean_frac: float
    median_frac: float
    p95_frac: float
    max_frac: float
    bias_frac: float


class Coefficient(NamedTuple):
    """One number of the law. low_s, high_s: what 90 % of fits to resampled shapes lie between."""

    name: str
    value_s: float
    low_s: float
    high_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """A fitted law and how well it does.

    measured_s, predicted_s, held_out: one per sample, in order.
    holdout: of each step held out.   holdout_shapes: of each shape held out, which counts once, by
        the median of its repeats: what a measurement's own scatter hides least.
    noise: how far repeats of one and the same step lie apart, which no law can be expected to
        beat; None without repeats.
    """

    profile: LatencyProfile
    coefficients: tuple[Coefficient, ...]
    samples: tuple[Sample, ...]
    shapes: tuple[Shape, ...]
    measured_s: Floats
    predicted_s: Floats
    held_out: NDArray[np.bool_]
    train: Errors
    holdout: Errors
    holdout_shapes: Errors
    noise: Errors | None

    @property
    def errors(self) -> Floats:
        """Return predicted / measured - 1 of each sample."""
        return self.predicted_s / self.measured_s - 1


def fit_steps(
    samples: Sequence[Sample],
    *,
    name: str,
    kv_bytes_per_token: int,
    holdout_frac: float = 0.3,
    seed: int = 1,
    clock: StepClock = "wall",
) -> FitResult:
    """Return the law that fits the samples best, with its errors.

    Cost: a few seconds for a thousand samples. Raises ConfigError when there are too few, when a
    coefficient has nothing to be told from, or when they lack the clock asked for.
    """
    if not 0 < holdout_frac < 1:
        raise ConfigError(f"the share held out is {holdout_frac}; it must be between 0 and 1")
    shapes = [shape(sample) for sample in samples]
    _check(samples, shapes, clock)
    measured_s = np.array([one.cpu_s if clock == "cpu" else one.step_s for one in samples])
    held_out = _held_out(samples, shapes, holdout_frac, stream(seed, "calib.holdout"))
    if not held_out.any():
        raise ConfigError(f"a share of {holdout_frac:g} holds no step out; use more, such as 0.3")
    table = make_table(samples, measured_s, shapes)
    train = table.rows(np.flatnonzero(~held_out))
    hinges = choose_hinges(train, _folds(train, stream(seed, "calib.folds")))
    solution = solve(train, hinges)
    hinges = tuple(hinge for hinge in hinges if solution[hinge] > 0)
    predicted_s = table.columns @ solution
    errors = predicted_s / measured_s - 1
    return FitResult(
        profile=LatencyProfile(
            name=name,
            step_base_s=float(solution[STEP]),
            token_hinges=(0, *(HINGES_TOKENS[hinge - HINGES.start] for hinge in hinges)),
            token_s=(float(solution[TOKENS]), *(float(solution[hinge]) for hinge in hinges)),
            kv_token_s=float(solution[KV]),
            decode_seq_s=float(solution[SEQS]),
            token_pair_s=float(solution[PAIRS]),
            kv_bytes_per_token=kv_bytes_per_token,
        ),
        coefficients=_coefficients(train, solution, hinges, stream(seed, "calib.spread")),
        samples=tuple(samples),
        shapes=tuple(shapes),
        measured_s=measured_s,
        predicted_s=predicted_s,
        held_out=held_out,
        train=summary(errors[~held_out]),
        holdout=summary(errors[held_out]),
        holdout_shapes=_by_medians(measured_s, predicted_s, shapes, held_out),
        noise=noise(measured_s, predicted_s, shapes),
    )


def summary(errors: Floats) -> Errors:
    """Return the figures of some relative errors. Raises ValueError when there are none."""
    sizes = sorted(np.abs(errors).tolist())
    return Errors(
        len(sizes),
        sum(sizes) / max(1, len(sizes)),
        percentile(sizes, 0.5),
        percentile(sizes, 0.95),
        sizes[-1],
        float(np.median(errors)),
    )


def _by_medians(
    measured_s: Floats, predicted_s: Floats, shapes: Sequence[Shape], held_out: NDArray[np.bool_]
) -> Errors:
    """Return the errors of the shapes held out, against the median of each one's repeats."""
    ratios = measured_s / predicted_s
    return summary(
        np.array(
            [
                1 / float(np.median(ratios[rows])) - 1
                for rows in _by_shape(shapes).values()
                if held_out[rows[0]]
            ]
        )
    )


def noise(measured_s: Floats, predicted_s: Floats, shapes: Sequence[Shape]) -> Errors | None:
    """Return how far repeats of a shape lie from the median of the others; None without repeats.

    The law takes out what the growing context does between repeats. The median of a few is itself
    uncertain: its variance is MEDIAN_VARIANCE / count of theirs, which is taken out again.
    """
    ratios = measured_s / predicted_s
    apart: list[float] = []
    for rows in _by_shape(shapes).values():
        if len(rows) < REPEATS_MIN:
            continue
        widened = (1 + MEDIAN_VARIANCE / (len(rows) - 1)) ** 0.5
        for at, own in enumerate(ratios[rows]):
            others = float(np.median(np.delete(ratios[rows], at)))
            apart.append((others / float(own) - 1) / widened)
    return summary(np.array(apart)) if apart else None


def _check(samples: Sequence[Sample], shapes: Sequence[Shape], clock: StepClock) -> None:
    remedy = "profile again, without --quick or with more time (--time-limit-s)"
    if len(samples) < SAMPLES_MIN or len(set(shapes)) < SHAPES_MIN:
        raise ConfigError(
            f"{len(samples)} steps of {len(set(shapes))} shapes are too few to fit; "
            f"at least {SAMPLES_MIN} of {SHAPES_MIN} are needed: {remedy}"
        )
    if clock == "cpu" and not all(isfinite(one.cpu_s) and one.cpu_s > 0 for one in samples):
        raise ConfigError("the samples hold no processor times; use --clock wall")
    batches = {one.decode_seqs for one in samples if not one.prefill_tokens}
    if len(batches) < 2:
        raise ConfigError(f"the decode-only steps have one batch size only: {remedy}")
    if len({one.prefill_tokens for one in samples}) < 4:
        raise ConfigError(f"the steps with prompt chunks have too few chunk sizes: {remedy}")


def _by_shape(shapes: Sequence[Shape]) -> dict[Shape, list[int]]:
    """Return the rows of each shape, in the order of their first appearance."""
    rows: defaultdict[Shape, list[int]] = defaultdict(list)
    for row, kind in enumerate(shapes):
        rows[kind].append(row)
    return rows


def _held_out(
    samples: Sequence[Sample], shapes: Sequence[Shape], holdout_frac: float, rng: Random
) -> NDArray[np.bool_]:
    """Return which rows are held out: the same share of the shapes of every regime."""
    by_regime: defaultdict[Regime, list[list[int]]] = defaultdict(list)
    for rows in _by_shape(shapes).values():
        by_regime[regime(samples[rows[0]])].append(rows)
    held = np.zeros(len(samples), dtype=bool)
    for groups in by_regime.values():
        for rows in rng.sample(groups, round(holdout_frac * len(groups))):
            held[rows] = True
    return held


def _folds(table: Table, rng: Random) -> list[Rows]:
    groups = list(_by_shape(table.shapes).values())
    rng.shuffle(groups)
    return [
        np.array([row for rows in groups[fold::FOLDS] for row in rows], dtype=np.int64)
        for fold in range(FOLDS)
    ]


def _coefficients(
    table: Table, solution: Floats, hinges: Sequence[int], rng: Random
) -> tuple[Coefficient, ...]:
    """Return the coefficients with their spread over fits to shapes drawn with replacement."""
    groups = list(_by_shape(table.shapes).values())
    fits = []
    for _ in range(SPREAD_DRAWS):
        drawn = rng.choices(groups, k=len(groups))
        fits.append(solve(table.rows([row for rows in drawn for row in rows]), hinges))
    low, high = np.quantile(np.array(fits), SPREAD_FRACS, axis=0)
    names = {STEP: "per step", TOKENS: "per scheduled token"}
    names |= {hinge: f"per token above {HINGES_TOKENS[hinge - HINGES.start]}" for hinge in hinges}
    names |= {SEQS: "per sequence in decode", KV: "per KV token", PAIRS: "per token pair"}
    return tuple(
        Coefficient(name, float(solution[at]), float(low[at]), float(high[at]))
        for at, name in names.items()
    )
