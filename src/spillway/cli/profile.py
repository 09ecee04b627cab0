"""`spillway profile`: drives one engine through a probe plan and keeps how long its steps took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli.options import DEFAULT_SEED

if TYPE_CHECKING:
    from spillway.calib.client import EngineFacts
    from spillway.calib.profiling import ProfileOptions
    from spillway.calib.samples import EngineLimits, SampleFile

UNTOLD = "What the engine does not tell"
RECORD = "For the record"

Url = Annotated[str, typer.Option(help="The engine itself, not a router. Without /v1.")]
Out = Annotated[Path, typer.Option(metavar="FILE", help="Where the samples go, a JSON line each.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Two contexts and fewer batches: about half a minute.")
]
TimeLimit = Annotated[
    float,
    typer.Option(metavar="S", min=1.0, help="Stop after so long and keep what was measured."),
]
FromGaps = Annotated[
    bool, typer.Option("--from-gaps", help="Use token gaps even if the engine reports its steps.")
]
Model = Annotated[str | None, typer.Option(metavar="NAME", help="Default: the first one it lists.")]
Streams = Annotated[
    int, typer.Option(metavar="N", min=2, help="Decode at most so many sequences at once.")
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=16,
        help="Its --max-num-batched-tokens. Needed with stock vLLM.",
        rich_help_panel=UNTOLD,
    ),
]
KvCapacity = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Its KV room, where neither reports nor /metrics say it. vLLM logs it at start-up.",
        rich_help_panel=UNTOLD,
    ),
]
ReportUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where its plug-in reports, when that has a port of its own (report_port).",
        rich_help_panel=UNTOLD,
    ),
]
ModelConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE|DIR",
        help="The model's config.json, which tells the size of its KV.",
        rich_help_panel=RECORD,
    ),
]
KvBytes = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Bytes of KV per token.", rich_help_panel=RECORD),
]
Gpu = Annotated[str, typer.Option(metavar="NAME", help="What it runs on.", rich_help_panel=RECORD)]
Dtype = Annotated[
    str, typer.Option(metavar="NAME", help="Its number type.", rich_help_panel=RECORD)
]
TensorParallel = Annotated[
    int, typer.Option(metavar="N", min=1, help="Over how many GPUs.", rich_help_panel=RECORD)
]
Seed = Annotated[int, typer.Option(help="Seed of the prompts' random tokens.")]


def profile(
    url: Url,
    report_url: ReportUrl = None,
    out: Out = Path("samples.jsonl"),
    quick: Quick = False,
    time_limit_s: TimeLimit = 300.0,
    from_gaps: FromGaps = False,
    model: Model = None,
    streams: Streams = 64,
    chunk_tokens: ChunkTokens = None,
    kv_capacity_tokens: KvCapacity = None,
    model_config: ModelConfigFile = None,
    kv_bytes_per_token: KvBytes = None,
    gpu: Gpu = "unknown",
    dtype: Dtype = "unknown",
    tensor_parallel: TensorParallel = 1,
    seed: Seed = DEFAULT_SEED,
) -> None:
    """Measure how long an engine's steps take, for spillway fit.

    It holds batches of streams at several contexts, sends prompts beside them,
    and takes step times from the engine's reports or, on stock vLLM, from the
    gaps between tokens. Nobody else should use the engine meanwhile.

    [bold]Examples[/bold]
      spillway profile --url http://10.0.0.21:8000 --gpu "NVIDIA H100"
      spillway profile --url http://10.0.0.21:8000 --chunk-tokens 512
    """
    from spillway.calib.profiling import ProfileOptions

    asked = ProfileOptions(
        url=url,
        report_url=report_url,
        model=model,
        source="gaps" if from_gaps else "auto",
        quick=quick,
        time_limit_s=time_limit_s,
        streams_max=streams,
        chunk_tokens=chunk_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        gpu=gpu,
        dtype=dtype,
        tensor_parallel=tensor_parallel,
        kv_bytes_per_token=kv_bytes_per_token or _kv_bytes(model_config),
        seed=seed,
    )
    _measure(asked, out)


def _measure(asked: ProfileOptions, out: Path) -> None:
    import asyncio

    from spillway.calib.samples import write_samples
    from spillway.cli.output import make_folder, note
    from spillway.core.errors import ConfigError

    make_folder(out)  # before the minutes that are spent on measuring
    file = asyncio.run(_drive(asked))
    try:
        write_samples(out, file)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror}") from None
    for line in _remarks(file):
        note(line)
    print(f"{out}: {len(file.samples):,} steps. Next: spillway fit {out}")


async def _drive(asked: ProfileOptions) -> SampleFile:
    from datetime import date

    from spillway.calib.profiling import profile_engine
    from spillway.cli.output import announce, progress
    from spillway.clock import MonotonicClock

    def ready(facts: EngineFacts, limits: EngineLimits) -> None:
        how = "its step reports" if facts.reports and asked.source == "auto" else "token gaps"
        announce(
            f"Profiling {facts.model} at {asked.url} (version {facts.version}) by {how}, "
            f"for {asked.time_limit_s:g} s at most",
            [
                f"up to {limits.streams_max} streams, {limits.kv_capacity_tokens:,} KV tokens, "
                f"contexts of {limits.context_tokens_max:,}, chunks of {limits.chunk_tokens_max:,}"
            ],
        )

    with progress("profiling", 1.0) as advance:
        return await profile_engine(
            asked,
            MonotonicClock(),
            date.today().isoformat(),
            ready=ready,
            progress=lambda done, total, detail: advance(done / total, detail),
        )


def _remarks(file: SampleFile) -> list[str]:
    head = file.head
    lines = [f"note: {line}" for line in head.notes]
    if head.steps_missed and head.source == "reports":
        lines.append(f"note: {head.steps_missed} steps were not reported in time and are missing")
    elif head.steps_missed:
        lines.append(
            f"note: {head.steps_missed} of the prompts did not show the steps that chunks of "
            f"{head.limits.chunk_tokens_max} tokens give, and were left out: is --chunk-tokens "
            "right?"
        )
    if not head.kv_bytes_per_token:
        lines.append(
            "note: the size of the KV is not known; spillway fit will ask for --kv-bytes-per-token"
        )
    return lines


def _kv_bytes(model_config: Path | None) -> int:
    from spillway.calib.kvsize import kv_bytes_per_token, read_model_config

    return kv_bytes_per_token(read_model_config(model_config)) if model_config else 0
