"""What is measured, as it is written to build/validation.json: every single figure, no verdict.

The page (`page.py`) is made from this alone, so it can be made again without measuring.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from spillway.wire.results import RunResult


class Spread(msgspec.Struct, frozen=True):
    """The median of some repeats, with the lowest and the highest of them."""

    middle: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of one or more values."""
    return Spread(median(values), min(values), max(values))


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Where and when. yardstick_us: a fixed piece of Python, before, between and after.

    load_averages: of the last minute, at the same times.
    """

    date: str
    machine: str
    versions: str
    model: str
    command: str
    duration_s: float
    yardstick_us: list[float]
    load_averages: list[float]


class Region(msgspec.Struct, frozen=True, kw_only=True):
    """Errors of the law on the steps of one kind, as shares. held_out: steps; 0 leaves the rest 0.

    noise_frac: how far repeats of one step lie apart; None without repeats.
    """

    name: str
    steps: int
    held_out: int = 0
    mean_frac: float = 0.0
    median_frac: float = 0.0
    p95_frac: float = 0.0
    bias_frac: float = 0.0
    noise_frac: float | None = None


EACH_SHAPE = "each shape once"  # the region in which repeats do not count


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """A law fitted to one clock's step times.

    regions: the kinds of step, then EACH_SHAPE, then all.
    """

    clock: str
    coefficients_s: dict[str, float]
    regions: list[Region]

    def region(self, name: str) -> Region:
        """Return the region of that name."""
        return next(one for one in self.regions if one.name == name)


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What an idle cluster adds to its steps. order_s: one way through HTTP into a step."""

    order_s: float
    link_base_s: float
    link_bytes_per_s: float


class GapRound(msgspec.Struct, frozen=True, kw_only=True):
    """The token gaps of all streams in one window. prompt_s: TTFT of the prompt, None without."""

    arm: str
    gaps: int
    p50_s: float
    p99_s: float
    max_s: float
    prompt_s: float | None = None


class Gaps(msgspec.Struct, frozen=True, kw_only=True):
    target_s: float
    rounds: list[GapRound]

    def of(self, arm: str) -> list[GapRound]:
        """Return the rounds of an arm."""
        return [one for one in self.rounds if one.arm == arm]


class BurstRun(msgspec.Struct, frozen=True, kw_only=True):
    """One policy on the burst of one seed: measured, and simulated on the same rows.

    late_client_s: how late the client sent, p99.
    """

    seed: int
    policy: str
    measured: RunResult
    simulated: RunResult
    late_client_s: float


class Bursts(msgspec.Struct, frozen=True, kw_only=True):
    """title: what a burst is, of the first seed."""

    title: str
    slo_ttft_s: float
    slo_tbt_s: float
    runs: list[BurstRun]

    def of(self, policy: str) -> list[BurstRun]:
        """Return a policy's runs by seed."""
        return sorted((one for one in self.runs if one.policy == policy), key=lambda one: one.seed)


class Validation(msgspec.Struct, frozen=True, kw_only=True):
    setup: Setup
    laws: list[Law]
    handover: Handover
    gaps: Gaps
    bursts: Bursts
