"""An engine with known coefficients, driven through the probe plan without a clock or a socket."""

from __future__ import annotations

from math import exp
from random import Random
from typing import Any

from spillway.calib.probes import make_plan
from spillway.calib.samples import EngineLimits, Head, Sample
from spillway.core.latency import LatencyProfile, step_s, token_pairs

DECODE_STEPS = 12


def make_limits(**changes: Any) -> EngineLimits:
    fields: dict[str, Any] = {
        "context_tokens_max": 32_768,
        "kv_capacity_tokens": 400_000,
        "streams_max": 64,
        "chunk_tokens_max": 2048,
    }
    return EngineLimits(**(fields | changes))


def make_head(**changes: Any) -> Head:
    fields: dict[str, Any] = {
        "spillway_version": "0.1.0",
        "date": "2026-01-01",
        "source": "reports",
        "model": "fake-llama",
        "engine": "vllm",
        "engine_version": "0.32.0",
        "limits": make_limits(),
        "kv_bytes_per_token": 131_072,
        "machine": "a test",
    }
    return Head(**(fields | changes))


def planned_steps(limits: EngineLimits, *, quick: bool) -> list[tuple[int, int, int, int]]:
    """Return (decode seqs, KV tokens, chunk tokens, chunk context) of each step of the plan."""
    steps = []
    for ladder in make_plan(limits, quick=quick):
        for rung in ladder.rungs:
            seqs, kv_tokens = rung.decode_seqs, rung.decode_seqs * ladder.context_tokens
            for _ in range(DECODE_STEPS if seqs else 0):
                kv_tokens += seqs
                steps.append((seqs, kv_tokens, 0, 0))
            for prompt_tokens in rung.prompts_tokens:
                for start in range(0, prompt_tokens, limits.chunk_tokens_max):
                    chunk = min(limits.chunk_tokens_max, prompt_tokens - start)
                    kv_tokens += seqs
                    steps.append((seqs, kv_tokens, chunk, start))
    return steps


def samples_of(
    profile: LatencyProfile,
    *,
    limits: EngineLimits | None = None,
    quick: bool = True,
    noise_frac: float = 0.0,
    stalls_frac: float = 0.0,
    seed: int = 1,
) -> list[Sample]:
    """Return what the plan would measure on an engine that obeys `profile`.

    noise_frac: spread of a factor on each step. stalls_frac: share of steps that something else
    makes 2 to 10 times as long.
    """
    rng = Random(seed)
    samples = []
    for seqs, kv_tokens, chunk, context in planned_steps(limits or make_limits(), quick=quick):
        time_s = step_s(profile, seqs, kv_tokens, chunk, context)
        time_s *= exp(rng.gauss(-(noise_frac**2) / 2, noise_frac))
        if rng.random() < stalls_frac:
            time_s *= rng.uniform(2.0, 10.0)
        samples.append(
            Sample(
                decode_seqs=seqs,
                kv_tokens=kv_tokens,
                prefill_tokens=chunk,
                prefill_token_pairs=token_pairs(chunk, context),
                step_s=time_s,
                cpu_s=time_s / 2,
            )
        )
    return samples
