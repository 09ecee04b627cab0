"""Options of the router, where a configuration file may say the same: None means "not given"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway.cli.options import LISTEN
from spillway.cli.values import fraction, positive
from spillway.wire.profile import DEFAULT_PROFILE

NODES = "Nodes"
DECISIONS = "Decisions"

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
        callback=positive,
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
        callback=positive,
        help="Target for requests that bring none: time between two tokens of a stream.",
        show_default="0.06",
        rich_help_panel=DECISIONS,
    ),
]
RouterTbtMargin = Annotated[
    float | None,
    typer.Option(
        "--tbt-margin",
        metavar="FRAC",
        callback=fraction,
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
