"""One profiling session, from an engine's URL to a file of samples that explains itself."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from spillway import __version__
from spillway.calib.client import EngineClient, EngineFacts
from spillway.calib.runner import Measured, Progress, measure
from spillway.calib.samples import AtLeastOne, EngineLimits, Head, SampleFile
from spillway.clock import Clock
from spillway.core.errors import ConfigError
from spillway.workload.seeds import stream

FAKE_VERSION = "+fake"  # how a simulated engine ends its version
CONTEXT_TOKENS_DEFAULT = 4096
CHUNK_TOKENS_DEFAULT = 2048
CPU_FACTS = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What to measure, and what the engine cannot be asked.

    report_url: of the engine's plug-in, where that has a port of its own.
    source: "auto" takes the engine's reports if there are any. streams_max: decoding at once.
    chunk_tokens, kv_capacity_tokens: None takes what the engine says.
    gpu, dtype, tensor_parallel, kv_bytes_per_token: passed on into the head.
    """

    url: str
    report_url: str | None = None
    model: str | None = None
    source: Literal["auto", "gaps"] = "auto"
    quick: bool = False
    time_limit_s: float = 300.0
    streams_max: int = 64
    chunk_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    gpu: str = "unknown"
    dtype: str = "unknown"
    tensor_parallel: AtLeastOne = 1
    kv_bytes_per_token: int = 0
    seed: int = 1


async def profile_engine(
    options: ProfileOptions,
    clock: Clock,
    date: str,
    *,
    ready: Callable[[EngineFacts, EngineLimits], None] = lambda facts, limits: None,
    progress: Progress = lambda done, total, detail: None,
) -> SampleFile:
    """Drive the engine and return its samples with their head.

    ready: called when the engine has answered, before it is driven. date: today's, an ISO day.
    Raises ConfigError when the engine cannot be reached or something about it must be said by
    option, NodeError when it breaks.
    """
    client = EngineClient(
        options.url,
        clock,
        stream(options.seed, "calib.prompts"),
        report_url=options.report_url,
    )
    async with client:
        facts = await client.facts(options.model)
        from_reports = facts.reports and options.source == "auto"
        limits = _limits(facts, options, from_reports)
        ready(facts, limits)
        measured = await measure(
            client,
            limits,
            clock,
            from_reports=from_reports,
            quick=options.quick,
            time_limit_s=options.time_limit_s,
            rng=stream(options.seed, "calib.repeats"),
            progress=progress,
        )
    head = _head(options, facts, limits, measured, from_reports, date)
    return SampleFile(head, measured.samples)


def _limits(facts: EngineFacts, options: ProfileOptions, from_reports: bool) -> EngineLimits:
    chunk_tokens = options.chunk_tokens or facts.chunk_tokens_max
    if chunk_tokens is None:
        if not from_reports:
            raise ConfigError(
                f"{options.url} sends no reports, so the size of its prefill chunks must be said: "
                "--chunk-tokens N, with N its --max-num-batched-tokens"
            )
        chunk_tokens = CHUNK_TOKENS_DEFAULT
    kv_tokens = options.kv_capacity_tokens or facts.kv_capacity_tokens
    if kv_tokens is None:
        raise ConfigError(
            f"{options.url} does not say how many tokens of KV it has room for: "
            "--kv-capacity-tokens N; vLLM logs it at start-up as 'GPU KV cache size'"
        )
    return EngineLimits(
        context_tokens_max=min(facts.context_tokens_max or CONTEXT_TOKENS_DEFAULT, kv_tokens),
        kv_capacity_tokens=kv_tokens,
        streams_max=options.streams_max,
        chunk_tokens_max=chunk_tokens,
        chunk_counts_decodes=not _is_fake(facts),
    )


def _head(
    options: ProfileOptions,
    facts: EngineFacts,
    limits: EngineLimits,
    measured: Measured,
    from_reports: bool,
    date: str,
) -> Head:
    flags = {
        name: value
        for name, value in asdict(options).items()
        if name in ("chunk_tokens", "kv_capacity_tokens") and value
    }
    flags |= {"streams_max": options.streams_max, "time_limit_s": options.time_limit_s}
    return Head(
        spillway_version=__version__,
        date=date,
        source="reports" if from_reports else "gaps",
        model=facts.model,
        engine="spillway engine" if _is_fake(facts) else "vllm",
        engine_version=facts.version,
        limits=limits,
        gpu=options.gpu,
        dtype=options.dtype,
        tensor_parallel=options.tensor_parallel,
        kv_bytes_per_token=options.kv_bytes_per_token,
        machine=machine(),
        seed=options.seed,
        quick=options.quick,
        rungs_done=measured.rungs_done,
        rungs_planned=measured.rungs_planned,
        steps_missed=measured.steps_missed,
        flags=flags,
        notes=measured.notes,
    )


def _is_fake(facts: EngineFacts) -> bool:
    return facts.version.endswith(FAKE_VERSION)


def machine() -> str:
    """Return what this machine is, without its name: processor, cores, system."""
    name = platform.processor() or platform.machine()
    try:
        lines = CPU_FACTS.read_text(errors="replace").splitlines()
    except OSError:
        lines = []  # not Linux; the architecture has to do
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else name}, {os.cpu_count()} cores, {platform.system()}"
