"""`spillway up`: a cluster on this machine, left running to be played with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.cli.cluster import ClusterPlan, LocalCluster

FOLDER = "build/up"


def up(
    cluster: options.Cluster = options.DEFAULT_CLUSTER,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How to decide where a prompt runs. See: spillway policies.",
            rich_help_panel=options.CLUSTER,
        ),
    ] = "headroom",
    profile: options.Profile = DEFAULT_PROFILE,
    bias: options.Bias = 1.0,
    noise: options.Noise = 0.0,
    seed: options.Seed = options.DEFAULT_SEED,
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    port: options.Port = 8000,
) -> None:
    """Start fake engines and a router here, and leave them running.

    Every engine and the router is a process of its own on loopback. Ctrl-C
    stops them all. Their logs are in build/up.

    [bold]Examples[/bold]
      spillway up
      spillway up --cluster 1p3d --policy kairos-paper --port 9000
    """
    import asyncio
    from contextlib import suppress
    from pathlib import Path

    from spillway.cli.cluster import ClusterPlan
    from spillway.sim.scenario import parse_cluster

    prefill_count, decode_count = parse_cluster(cluster)
    plan = ClusterPlan(
        folder=Path(FOLDER),
        prefill_count=prefill_count,
        decode_count=decode_count,
        policy=policy,
        profile=profile,
        slo_ttft_s=slo_ttft_s,
        slo_tbt_s=slo_tbt_s,
        port=port,
        seed=seed,
        bias_frac=bias,
        noise_frac=noise,
    )
    with suppress(KeyboardInterrupt):  # the way to end it, and everything has ended by then
        asyncio.run(_stay_up(plan))


async def _stay_up(plan: ClusterPlan) -> None:
    from spillway.cli.cluster import LocalCluster
    from spillway.cli.output import note

    note(f"starting {plan.prefill_count} prefill and {plan.decode_count} decode engines ...")
    async with LocalCluster(plan) as cluster:
        typer.echo(welcome(cluster))
        await cluster.watch(note)


def welcome(cluster: LocalCluster) -> str:
    """Return what to do with the running cluster, with lines that can be pasted."""
    url, pids = cluster.url, cluster.pids()
    body = '{"model": "fake-llama", "prompt": "Why?", "max_tokens": 8, "stream": true}'
    engines = "\n".join(
        f"  {name:<4}{engine}   pid {pids[name]}" for name, engine in cluster.engine_urls.items()
    )
    return f"""
{typer.style(f"The router ({cluster.plan.policy}) is at {url}", bold=True)}
{engines}

Ask it something:
  curl -N {url}/v1/completions -d '{body}'

Put it under load, then ask why a prompt was deflected:
  spillway load --url {url} --synthetic burst --duration-s 20
  spillway explain --url {url}

Look inside: {url}/metrics, {url}/debug/decisions
Kill an engine by its pid and see its traffic move. Ctrl-C stops everything."""
