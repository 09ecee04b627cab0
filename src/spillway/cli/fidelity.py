"""Options of how true to life a simulation is: nodes that differ, reports that lag, clients."""

from __future__ import annotations

from typing import Annotated

import typer

from spillway.cli.options import CLUSTER, WORKLOAD
from spillway.cli.values import not_negative, share

ClosedLoop = Annotated[
    bool,
    typer.Option(
        "--closed-loop",
        help="Let each turn of a session arrive when the one before has ended and its recorded "
        "pause is over, instead of at its recorded time.",
        rich_help_panel=WORKLOAD,
    ),
]
Drift = Annotated[
    float,
    typer.Option(
        "--drift",
        metavar="FRAC",
        help="Let steps grow slower over the run, by this share at its end; 0.3 is 30 %.",
        rich_help_panel=CLUSTER,
    ),
]
OwnNodes = Annotated[
    list[str] | None,
    typer.Option(
        "--node",
        metavar="d1=KEY:VALUE,...",
        help="What one node has of its own, such as d1=profile:llama-3.1-8b-h100,link:100gbps, or "
        "p0=bias:1.2 for a node 20 % slower than the router believes. Repeat it for more nodes.",
        rich_help_panel=CLUSTER,
    ),
]
ReportDelay = Annotated[
    float,
    typer.Option(
        "--report-delay-s",
        metavar="S",
        callback=not_negative,
        help="How long a report is on its way.",
        rich_help_panel=CLUSTER,
    ),
]
ReportLoss = Annotated[
    float,
    typer.Option(
        "--report-loss",
        metavar="FRAC",
        callback=share,
        help="Share of the reports that never arrive; 0.1 is 10 %.",
        rich_help_panel=CLUSTER,
    ),
]
Routers = Annotated[
    int,
    typer.Option(
        "--routers",
        metavar="N",
        min=1,
        max=64,
        help="Routers that share the nodes, each with books of its own; requests reach them by "
        "chance, and nodes decline what another one's work has left no room for.",
        rich_help_panel=CLUSTER,
    ),
]
Check = Annotated[
    bool, typer.Option("--check", help="Verify every invariant after every event (slow).")
]
