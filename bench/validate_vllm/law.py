"""Step times of the engine, and the law fitted to them: by the wall clock and by processor time."""

from __future__ import annotations

from typing import NamedTuple

from spillway.calib.fit import Errors, FitResult, fit_steps
from spillway.calib.profiling import ProfileOptions, profile_engine
from spillway.calib.quality import by_context, by_regime, percent, profile_file
from spillway.calib.samples import SampleFile, write_samples
from spillway.cli.output import progress
from spillway.clock import MonotonicClock
from spillway.core.errors import NodeError
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import MODEL_NAME
from spillway.wire.profile import ProfileFile
from validate_vllm.results import EACH_SHAPE, Law, Region

STREAMS_MAX = 32
SAMPLES = "samples.jsonl"  # kept beside the nodes' logs, for `spillway fit`
SIGMA_PER_MEAN = 1.2533  # of a normal distribution: standard deviation over mean deviation


class Measured(NamedTuple):
    """profile: of the wall clock, which is what first tokens and gaps are made of.

    noise_frac: standard deviation of a step about the law, as far as repeats show it.
    """

    profile: ProfileFile
    noise_frac: float
    laws: list[Law]
    engine_version: str


async def measure(
    cluster: VllmCluster, date: str, time_limit_s: float, noise_frac_max: float, seed: int
) -> Measured:
    """Drive the first decode node through the probe plan and fit. Raises NodeError, ConfigError."""
    plan, node = cluster.plan, cluster.nodes["d0"]
    options = ProfileOptions(
        url=node.url,
        report_url=node.report_url,
        model=MODEL_NAME,
        time_limit_s=time_limit_s,
        streams_max=STREAMS_MAX,
        gpu="none: one CPU core",
        dtype=plan.dtype,
        kv_bytes_per_token=plan.kv_bytes_per_token,
        seed=seed,
    )
    with progress("profiling", 1.0) as advance:
        samples = await profile_engine(
            options,
            MonotonicClock(),
            date,
            progress=lambda done, total, detail: advance(done / total, detail),
        )
    write_samples(plan.folder / SAMPLES, samples)
    wall, cpu = (_fit(samples, clock, seed) for clock in ("wall", "cpu"))
    repeats_frac = wall.noise.mean_frac if wall.noise else 0.0
    refuse_noise(repeats_frac, noise_frac_max)
    return Measured(
        profile_file(wall, samples.head),
        SIGMA_PER_MEAN * repeats_frac,
        [_law("cpu", cpu), _law("wall", wall)],
        samples.head.engine_version,
    )


def refuse_noise(repeats_frac: float, noise_frac_max: float) -> None:
    """Raise NodeError when repeats of one step lie so far apart that nothing can be told."""
    if repeats_frac > noise_frac_max:
        raise NodeError(
            f"this machine is too busy to measure on: repeats of one and the same step differ by"
            f" {percent(repeats_frac)} (at most {percent(noise_frac_max)} is allowed); let nothing"
            " else run on it"
        )


def _fit(samples: SampleFile, clock: str, seed: int) -> FitResult:
    return fit_steps(
        samples.samples,
        name=f"{samples.head.model}-measured",
        kv_bytes_per_token=samples.head.kv_bytes_per_token,
        seed=seed,
        clock="cpu" if clock == "cpu" else "wall",
    )


def _law(clock: str, fit: FitResult) -> Law:
    regions = [
        _region(one.name, one.steps, one.held_out, one.noise)
        for one in (*by_regime(fit), *by_context(fit))
    ]
    regions.append(_region(EACH_SHAPE, len(set(fit.shapes)), fit.holdout_shapes, None))
    regions.append(_region("all", len(fit.samples), fit.holdout, fit.noise))
    coefficients = {one.name: one.value_s for one in fit.coefficients}
    return Law(clock=clock, coefficients_s=coefficients, regions=regions)


def _region(name: str, steps: int, errors: Errors | None, noise: Errors | None) -> Region:
    noise_frac = noise.mean_frac if noise else None
    if errors is None:
        return Region(name=name, steps=steps, noise_frac=noise_frac)
    return Region(
        name=name,
        steps=steps,
        held_out=errors.steps,
        mean_frac=errors.mean_frac,
        median_frac=errors.median_frac,
        p95_frac=errors.p95_frac,
        bias_frac=errors.bias_frac,
        noise_frac=noise_frac,
    )
