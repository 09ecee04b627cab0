"""Robust non-negative least squares for the step-time law, and the choice of its hinges.

Once the hinges stand the law of `core.latency` is linear in its coefficients. Errors are relative,
because a step of 5 ms and one of 500 ms matter alike, and weighted after Huber, because on a shared
machine some steps are stalled by something else. They are taken relative to the prediction. Were
they relative to the measurement, a noisy step would count most where it happens to be short, and
the law would come out too low.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from spillway.calib.regimes import Shape
from spillway.calib.samples import Sample

HINGES_TOKENS = (64, 128, 256, 512, 1024, 2048)  # where GPUs show their knees
HINGES_MAX = 3
HINGE_SHAPES_MIN = 4  # on either side, for a hinge to mean anything
HINGE_GAIN_FRAC_MIN = 0.03  # of the error, that one more hinge must save
HINGE_GAIN_MIN_FRAC = 0.0005  # and so much of a step
FOLDS = 5
HUBER_SIGMAS = 1.345  # 95 % efficiency on normal errors
SIGMAS_PER_MAD = 1.4826
ROUNDS_MAX = 25
ROUND_CHANGE_MIN_FRAC = 1e-6
REPEATS_COUNTED_MAX = 8  # a shape with more repeats weighs no more than one with so many
SCALE_MIN_FRAC = 1e-9  # of residuals: noiseless samples leave none

# Columns of a table: what each coefficient of the law is multiplied with.
STEP, TOKENS = 0, 1
HINGES = range(2, 2 + len(HINGES_TOKENS))
KV, PAIRS, SEQS = HINGES.stop, HINGES.stop + 1, HINGES.stop + 2

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class Table(NamedTuple):
    """Samples as a matrix, a row each. weights: how much a row counts."""

    columns: Floats
    measured_s: Floats
    shapes: tuple[Shape, ...]
    weights: Floats

    def rows(self, chosen: Sequence[int] | Rows) -> Table:
        """Return some rows, in the order given; a row may come twice."""
        index = np.asarray(chosen, dtype=np.int64)
        shapes = tuple(self.shapes[row] for row in index)
        return Table(self.columns[index], self.measured_s[index], shapes, self.weights[index])


def make_table(samples: Sequence[Sample], measured_s: Floats, shapes: Sequence[Shape]) -> Table:
    """Return the table of some samples."""
    scheduled = np.array([one.decode_seqs + one.prefill_tokens for one in samples], dtype=float)
    columns = [
        np.ones(len(samples)),
        scheduled,
        *(np.maximum(0.0, scheduled - hinge) for hinge in HINGES_TOKENS),
        np.array([one.kv_tokens for one in samples], dtype=float),
        np.array([one.prefill_token_pairs for one in samples], dtype=float),
        np.array([one.decode_seqs for one in samples], dtype=float),
    ]
    repeats = Counter(shapes)
    weights = [min(repeats[kind], REPEATS_COUNTED_MAX) / repeats[kind] for kind in shapes]
    return Table(np.column_stack(columns), measured_s, tuple(shapes), np.array(weights))


def solve(table: Table, hinges: Sequence[int]) -> Floats:
    """Return a coefficient per column, none negative, 0 for hinges that are not among `hinges`.

    Iteratively re-weighted: about ten rounds of one non-negative least-squares problem.
    """
    used = [STEP, TOKENS, *hinges, KV, PAIRS, SEQS]
    columns = table.columns[:, used]
    norms = np.maximum(np.linalg.norm(columns / table.measured_s[:, None], axis=0), 1e-300)
    scaled = columns / norms  # coefficients differ by ten powers of ten
    predicted_s, huber = table.measured_s, np.ones(len(table.measured_s))
    found = np.zeros(len(used))
    for _ in range(ROUNDS_MAX):
        weights = np.sqrt(table.weights * huber) / predicted_s
        before, (found, _) = found, nnls(scaled * weights[:, None], table.measured_s * weights)
        predicted_s = np.maximum(scaled @ found, 1e-9)
        errors = np.abs(table.measured_s / predicted_s - 1)
        scale = max(SIGMAS_PER_MAD * float(np.median(errors)), SCALE_MIN_FRAC)
        huber = np.minimum(1.0, HUBER_SIGMAS * scale / np.maximum(errors, SCALE_MIN_FRAC))
        if np.abs(found - before).max() <= ROUND_CHANGE_MIN_FRAC * np.abs(found).max():
            break
    solution = np.zeros(table.columns.shape[1])
    solution[used] = found / norms
    return solution


def choose_hinges(table: Table, folds: Sequence[Rows]) -> tuple[int, ...]:
    """Return the columns of the hinges that pay, by the error on rows left out; often none.

    Of each number of hinges the best set is found by trying all. One more hinge pays when it saves
    HINGE_GAIN_FRAC_MIN of the error, and more than the spread of that saving over the folds.
    """
    possible = [column for column in HINGES if _has_both_sides(table, column)]
    chosen: tuple[int, ...] = ()
    errors = _left_out(table, chosen, folds)
    for count in range(1, min(HINGES_MAX, len(possible)) + 1):
        tried = {
            hinges: _left_out(table, hinges, folds) for hinges in combinations(possible, count)
        }
        best = min(tried, key=lambda hinges: float(tried[hinges].mean()))
        gains = errors - tried[best]
        spread = float(gains.std(ddof=1)) / len(folds) ** 0.5
        least = max(HINGE_GAIN_FRAC_MIN * float(errors.mean()), HINGE_GAIN_MIN_FRAC, spread)
        if float(gains.mean()) > least:
            chosen, errors = best, tried[best]
    return chosen


def _has_both_sides(table: Table, column: int) -> bool:
    beyond = table.columns[:, column] > 0
    sides: tuple[set[Shape], set[Shape]] = (set(), set())
    for kind, above in zip(table.shapes, beyond, strict=True):
        sides[bool(above)].add(kind)
    return min(len(side) for side in sides) >= HINGE_SHAPES_MIN


def _left_out(table: Table, hinges: Sequence[int], folds: Sequence[Rows]) -> Floats:
    """Return per fold the mean relative error of its rows under the law fitted to the others."""
    errors = []
    for fold in folds:
        others = np.setdiff1d(np.arange(len(table.measured_s)), fold)
        solution = solve(table.rows(others), hinges)
        predicted_s = table.columns[fold] @ solution
        errors.append(float(np.abs(predicted_s / table.measured_s[fold] - 1).mean()))
    return np.array(errors)
