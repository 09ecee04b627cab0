"""Measured steps, and the file they are kept in: one JSON object per line, the first one a head.

The head says what was measured, where and how, so that a file explains itself years later and a
profile fitted to it can carry its provenance on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec

from spillway.core.errors import ConfigError

SAMPLES_SCHEMA_VERSION = 1
HOW = {"reports": "step reports", "gaps": "token gaps", "kernels": "timed kernels"}

Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
T = TypeVar("T")


class Sample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One engine step: what it computed and how long it took.

    The features are those of `core.latency`: sequences in decode, the KV tokens they hold, prompt
    tokens, and the (token, attended token) pairs of these.
    step_s: wall-clock time. cpu_s: processor time of the engine's thread; 0 when not known.
    """

    decode_seqs: Count
    kv_tokens: Count
    prefill_tokens: Count = 0
    prefill_token_pairs: Amount = 0.0
    step_s: Positive
    cpu_s: Amount = 0.0

    def __post_init__(self) -> None:
        if not (self.decode_seqs or self.prefill_tokens):
            raise ValueError("a step computes something")
        if self.prefill_token_pairs and not self.prefill_tokens:
            raise ValueError("prefill_token_pairs without prefill_tokens")


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far an engine can be driven.

    context_tokens_max: prompt plus output of one request.   streams_max: decoding at once.
    chunk_tokens_max: largest share of a step that prompts get.
    chunk_counts_decodes: the sequences in decode take their tokens out of that share, as in vLLM's
        `--max-num-batched-tokens`.
    """

    context_tokens_max: AtLeastOne
    kv_capacity_tokens: AtLeastOne
    streams_max: AtLeastOne
    chunk_tokens_max: AtLeastOne
    chunk_counts_decodes: bool = False


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Where samples come from.

    source: "reports" when the engine told its step times, "gaps" when they are token gaps,
        "kernels" when a model's kernels were timed without an engine (bench/gpu_steps).
    machine: that of the client; on a loopback address the engine's too.
    rungs_done, rungs_planned: how much of the probe plan the time allowed.
    steps_missed: steps that the engine took but nobody heard of.
    notes: whatever else a reader should know.
    """

    kind: Literal["spillway step samples"] = "spillway step samples"
    schema_version: int = SAMPLES_SCHEMA_VERSION
    spillway_version: str
    date: str
    source: Literal["reports", "gaps", "kernels"]
    model: str
    engine: str
    engine_version: str
    limits: EngineLimits
    gpu: str = "unknown"
    dtype: str = "unknown"
    tensor_parallel: AtLeastOne = 1
    kv_bytes_per_token: Count = 0
    machine: str = "unknown"
    seed: int = 0
    quick: bool = False
    rungs_done: Count = 0
    rungs_planned: Count = 0
    steps_missed: Count = 0
    flags: dict[str, Any] = {}
    notes: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """Return what the step times were taken from, in words."""
        return HOW[self.source]


class SampleFile(NamedTuple):
    head: Head
    samples: list[Sample]


def write_samples(path: str | Path, file: SampleFile) -> None:
    """Write the head and a line per sample. Raises OSError."""
    encoder = msgspec.json.Encoder()
    lines = [encoder.encode(file.head), *(encoder.encode(sample) for sample in file.samples)]
    Path(path).write_bytes(b"\n".join(lines) + b"\n")


def read_samples(path: str | Path) -> SampleFile:
    """Return what `write_samples` wrote. Raises ConfigError naming the line and what is wrong."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the samples: {error.strerror}; `spillway profile` makes them"
        ) from None
    if not lines:
        raise ConfigError(f"{path}: is empty; `spillway profile` makes a file of samples")
    head = _decoded(lines[0], Head, f"{path}: line 1 is not the head of a file of samples")
    if head.schema_version != SAMPLES_SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {head.schema_version}; "
            f"this version of spillway reads {SAMPLES_SCHEMA_VERSION}"
        )
    samples = [
        _decoded(line, Sample, f"{path}: line {number} is not a sample")
        for number, line in enumerate(lines[1:], start=2)
    ]
    return SampleFile(head, samples)


def _decoded(line: bytes, kind: type[T], fault: str) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{fault}: {error}") from None
