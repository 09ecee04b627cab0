"""Options that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway.cli.values import fraction, not_negative, picture, positive, writable

DEFAULT_SEED = 1
DEFAULT_CLUSTER = "2p2d"
COMPARED_POLICIES = ("least-loaded", "kairos-paper", "headroom")

WORKLOAD = "Workload"
TARGETS = "Targets"
CLUSTER = "Cluster"
OUTPUT = "Output"
LISTEN = "Listen"

Trace = Annotated[
    list[Path] | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Replay a trace: Azure, Mooncake, BurstGPT, RAGPulse, Qwen-Bailian, ServeGen, "
        "agentic sessions, or our own CSV or JSONL; recognised by its content. Several are "
        "merged, on the wall clock if they have one.",
        rich_help_panel=WORKLOAD,
    ),
]
Apply = Annotated[
    list[str] | None,
    typer.Option(
        "--apply",
        metavar="OP=VALUE",
        help="Change the requests, after cutting and in the order given: thin=SHARE, "
        "overlay=COPIES, context-max=TOKENS, speed-up=FACTOR, arrivals=poisson, "
        "lengths=shuffled.",
        rich_help_panel=WORKLOAD,
    ),
]
Synthetic = Annotated[
    str | None,
    typer.Option(
        "--synthetic",
        metavar="FAMILY",
        help="Draw a workload instead: burst, chat, lpld, lphd, hpld, hphd "
        "(low/high prefill, low/high decode) or sessions (multi-turn).",
        rich_help_panel=WORKLOAD,
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="PER_S",
        callback=positive,
        help="Requests per second of a drawn workload. Default: the family's own.",
        rich_help_panel=WORKLOAD,
    ),
]
Duration = Annotated[
    float,
    typer.Option(
        "--duration-s",
        metavar="S",
        callback=positive,
        help="Length of a drawn workload.",
        rich_help_panel=WORKLOAD,
    ),
]
FromS = Annotated[
    float | None,
    typer.Option(
        "--from-s",
        metavar="S",
        help="Start of the part of the trace to use, in its own seconds.",
        rich_help_panel=WORKLOAD,
    ),
]
ToS = Annotated[
    float | None,
    typer.Option("--to-s", metavar="S", help="End of that part.", rich_help_panel=WORKLOAD),
]
SpeedUp = Annotated[
    float,
    typer.Option(
        "--speed-up",
        metavar="FACTOR",
        callback=positive,
        help="Let requests arrive so many times as fast.",
        rich_help_panel=WORKLOAD,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        help="Seed of every random draw: same seed, same workload.",
        rich_help_panel=WORKLOAD,
    ),
]
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="Policy to run, with switches if you like (headroom:pressure=off); give it several "
        "times to compare. See: spillway policies. "
        f"Default: {', '.join(COMPARED_POLICIES)}.",
        rich_help_panel=CLUSTER,
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        metavar="NAME|FILE",
        help="Latency profile of model and GPU. See: spillway profiles.",
        rich_help_panel=CLUSTER,
    ),
]
Cluster = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="2p2d",
        help="How many prefill and decode nodes.",
        rich_help_panel=CLUSTER,
    ),
]
LinkName = Annotated[
    str | None,
    typer.Option(
        "--link",
        metavar="NAME",
        help="What KV travels on: nvlink, 400gbps, 200gbps, 100gbps, 25gbps or 10gbps. "
        "Default: 25 GB/s with 2 ms of set-up.",
        rich_help_panel=CLUSTER,
    ),
]
Bias = Annotated[
    float,
    typer.Option(
        "--bias",
        metavar="FACTOR",
        callback=positive,
        help="Let steps really take so many times what the profile says.",
        rich_help_panel=CLUSTER,
    ),
]
Noise = Annotated[
    float,
    typer.Option(
        "--noise",
        metavar="FRAC",
        callback=not_negative,
        help="Spread of the real step times around that; 0.1 is 10 %.",
        rich_help_panel=CLUSTER,
    ),
]
ReportPeriod = Annotated[
    float,
    typer.Option(
        "--report-period-s",
        metavar="S",
        callback=not_negative,
        help="How often nodes report their state; 0 for engines that never do.",
        rich_help_panel=CLUSTER,
    ),
]
DecodeChunkTokens = Annotated[
    int | None,
    typer.Option(
        "--decode-chunk-tokens",
        metavar="N",
        min=1,
        help="Decode nodes are stock vLLM, with prefill chunks of this size. "
        "Default: each step's chunk is sized to what the running streams can bear.",
        rich_help_panel=CLUSTER,
    ),
]
TbtMargin = Annotated[
    float,
    typer.Option(
        "--tbt-margin",
        metavar="FRAC",
        callback=fraction,
        help="The share of a TBT target that a step with prefill may take; the rest is for "
        "what steps cost beside the GPU.",
        rich_help_panel=TARGETS,
    ),
]
SloTtft = Annotated[
    float,
    typer.Option(
        "--slo-ttft-s",
        metavar="S",
        callback=positive,
        help="Target: time to first token.",
        rich_help_panel=TARGETS,
    ),
]
SloTbt = Annotated[
    float,
    typer.Option(
        "--slo-tbt-s",
        metavar="S",
        callback=positive,
        help="Target: time between two tokens of a stream.",
        rich_help_panel=TARGETS,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=writable,
        help="Write the figures as JSON (docs/results.md).",
        rich_help_panel=OUTPUT,
    ),
]
Records = Annotated[
    Path | None,
    typer.Option(
        "--records",
        metavar="FILE",
        callback=writable,
        help="Write one JSON line per request.",
        rich_help_panel=OUTPUT,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        callback=writable,
        help="Write a report with plots, in one file without links.",
        rich_help_panel=OUTPUT,
    ),
]
Figure = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        metavar="FILE",
        callback=picture,
        help="Write one plot, first tokens beside token gaps, as .svg, .png or .pdf.",
        rich_help_panel=OUTPUT,
    ),
]
Decisions = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        callback=writable,
        help="Write every decision of the last policy, for: spillway explain ID --log FILE.",
        rich_help_panel=OUTPUT,
    ),
]
# --- for whatever listens ----------------------------------------------------------------------

Host = Annotated[str, typer.Option("--host", help="Address to listen on.", rich_help_panel=LISTEN)]
Port = Annotated[
    int,
    typer.Option("--port", help="Port to listen on; 0 takes a free one.", rich_help_panel=LISTEN),
]
EndWithParent = Annotated[
    bool,
    typer.Option(
        "--end-with-parent",
        hidden=True,
        help="Stop when standard input closes: whoever started this is gone.",
    ),
]
