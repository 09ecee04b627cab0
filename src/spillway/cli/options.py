"""Options that several commands share, so that one name means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway.wire.profile import DEFAULT_PROFILE

DEFAULT_SEED = 1
DEFAULT_CLUSTER = "2p2d"
COMPARED_POLICIES = ("least-loaded", "kairos-paper", "headroom")

WORKLOAD = "Workload"
TARGETS = "Targets"
CLUSTER = "Cluster"
OUTPUT = "Output"
NODES = "Nodes"
DECISIONS = "Decisions"
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
        help="Requests per second of a drawn workload. Default: the family's own.",
        rich_help_panel=WORKLOAD,
    ),
]
Duration = Annotated[
    float,
    typer.Option(
        "--duration-s",
        metavar="S",
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
        help="Let steps really take so many times what the profile says.",
        rich_help_panel=CLUSTER,
    ),
]
Noise = Annotated[
    float,
    typer.Option(
        "--noise",
        metavar="FRAC",
        help="Spread of the real step times around that; 0.1 is 10 %.",
        rich_help_panel=CLUSTER,
    ),
]
ReportPeriod = Annotated[
    float,
    typer.Option(
        "--report-period-s",
        metavar="S",
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
        help="Target: time to first token.",
        rich_help_panel=TARGETS,
    ),
]
SloTbt = Annotated[
    float,
    typer.Option(
        "--slo-tbt-s",
        metavar="S",
        help="Target: time between two tokens of a stream.",
        rich_help_panel=TARGETS,
    ),
]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write the figures as JSON (docs/results.md).",
        rich_help_panel=OUTPUT,
    ),
]
Records = Annotated[
    Path | None,
    typer.Option(
        "--records",
        metavar="FILE",
        help="Write one JSON line per request.",
        rich_help_panel=OUTPUT,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a report with plots, in one file without links.",
        rich_help_panel=OUTPUT,
    ),
]
Figure = Annotated[
    Path | None,
    typer.Option(
        "--figure",
        metavar="FILE",
        help="Write one plot, first tokens beside token gaps, as .svg, .png or .pdf.",
        rich_help_panel=OUTPUT,
    ),
]
Decisions = Annotated[
    Path | None,
    typer.Option(
        "--decisions",
        metavar="FILE",
        help="Write every decision of the last policy, for: spillway explain ID --log FILE.",
        rich_help_panel=OUTPUT,
    ),
]
# --- for the router, where a configuration file may say the same: None means "not given" ------

PrefillUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--prefill", metavar="URL", help="A prefill node; repeat for more.", rich_help_panel=NODES
    ),
]
DecodeUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--decode", metavar="URL", help="A decode node; repeat for more.", rich_help_panel=NODES
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="A YAML file instead of node flags; see examples/cluster.yaml.",
        rich_help_panel=NODES,
    ),
]
NodeProfile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME|FILE",
        help="Latency profile of the nodes. See: spillway profiles.",
        show_default=DEFAULT_PROFILE,
        rich_help_panel=NODES,
    ),
]
KvCapacity = Annotated[
    int | None,
    typer.Option(
        "--kv-capacity-tokens",
        metavar="N",
        min=0,
        help="KV room of a node. vLLM logs it at start-up as 'GPU KV cache size'. "
        "Default: the profile's. 0 is unknown and forbids deflection.",
        rich_help_panel=NODES,
    ),
]
StockChunkTokens = Annotated[
    int | None,
    typer.Option(
        "--decode-chunk-tokens",
        metavar="N",
        min=1,
        help="Decode nodes are stock vLLM started with --max-num-batched-tokens N: needed for "
        "deflection to engines that send no reports.",
        rich_help_panel=NODES,
    ),
]
RouterPolicy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="How to decide where a prompt runs. See: spillway policies.",
        show_default="headroom",
        rich_help_panel=DECISIONS,
    ),
]
RouterSloTtft = Annotated[
    float | None,
    typer.Option(
        "--slo-ttft-s",
        metavar="S",
        help="Target for requests that bring none: time to first token.",
        show_default="1.0",
        rich_help_panel=DECISIONS,
    ),
]
RouterSloTbt = Annotated[
    float | None,
    typer.Option(
        "--slo-tbt-s",
        metavar="S",
        help="The same: time between two tokens of a stream.",
        show_default="0.06",
        rich_help_panel=DECISIONS,
    ),
]
RouterTbtMargin = Annotated[
    float | None,
    typer.Option(
        "--tbt-margin",
        metavar="FRAC",
        help="The share of a TBT target that a step with a deflected chunk may take; the rest "
        "is for what steps cost beside the GPU.",
        show_default="0.9",
        rich_help_panel=NODES,
    ),
]
DecisionLog = Annotated[
    Path | None,
    typer.Option(
        "--decision-log",
        metavar="FILE",
        help="Append every decision, with the state it was made on, for: spillway explain.",
        rich_help_panel=DECISIONS,
    ),
]

# --- for whatever listens ----------------------------------------------------------------------

Host = Annotated[str, typer.Option("--host", help="Address to listen on.", rich_help_panel=LISTEN)]
Port = Annotated[
    int,
    typer.Option("--port", help="Port to listen on; 0 takes a free one.", rich_help_panel=LISTEN),
]
RouterHost = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="Address to listen on.",
        show_default="127.0.0.1",
        rich_help_panel=LISTEN,
    ),
]
RouterPort = Annotated[
    int | None,
    typer.Option(
        "--port",
        help="Port to listen on; 0 takes a free one.",
        show_default="8000",
        rich_help_panel=LISTEN,
    ),
]
EndWithParent = Annotated[
    bool,
    typer.Option(
        "--end-with-parent",
        hidden=True,
        help="Stop when standard input closes: whoever started this is gone.",
    ),
]
