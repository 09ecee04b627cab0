"""`spillway up`: a cluster on this machine, left running to be played with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.cli.cluster import ClusterPlan, LocalCluster

FOLDER = "build/up"
ENGINES = ("fake", "vllm")

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="2p2d",
        help="How many prefill and decode nodes. Default: 2p2d, of vLLM 1p1d.",
        rich_help_panel=options.CLUSTER,
    ),
]
Policy = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How to decide where a prompt runs. See: spillway policies.",
        rich_help_panel=options.CLUSTER,
    ),
]
Engine = Annotated[
    str, typer.Option(help="fake or vllm: what the engines are.", rich_help_panel=options.CLUSTER)
]
VllmPython = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help="With --engine vllm: the interpreter that has vLLM.",
        rich_help_panel=options.CLUSTER,
    ),
]
Stock = Annotated[
    bool,
    typer.Option(
        "--stock", help="With --engine vllm: without the plug-in.", rich_help_panel=options.CLUSTER
    ),
]

Burst = Annotated[
    bool,
    typer.Option(
        "--burst",
        help="With --engine vllm: measure a burst that these engines can take, compare "
        "least-loaded with --policy, and end.",
        rich_help_panel=options.CLUSTER,
    ),
]


def up(
    cluster: Cluster = None,
    engine: Engine = "fake",
    policy: Policy = "headroom",
    profile: options.Profile = DEFAULT_PROFILE,
    bias: options.Bias = 1.0,
    noise: options.Noise = 0.0,
    seed: options.Seed = options.DEFAULT_SEED,
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    port: options.Port = 8000,
    vllm_python: VllmPython = Path(".venv-vllm/bin/python"),
    stock: Stock = False,
    burst: Burst = False,
) -> None:
    """Start engines and a router here, and leave them running.

    Every engine is a process of its own on loopback. Ctrl-C stops them all. Their
    logs are in build/up. With --engine vllm they are real ones, on the processor,
    with a tiny model and KV transfer by NIXL; --burst measures them, and ends.

    [bold]Examples[/bold]
      spillway up
      spillway up --cluster 1p3d --policy kairos-paper --port 9000
      spillway up --engine vllm
      spillway up --engine vllm --burst
    """
    from spillway.cli import up_vllm
    from spillway.cli.cluster import ClusterPlan
    from spillway.core.errors import ConfigError
    from spillway.sim.scenario import parse_cluster

    if engine not in ENGINES:
        raise ConfigError(f"--engine {engine!r}: choose {' or '.join(ENGINES)}")
    default = up_vllm.DEFAULT_CLUSTER if engine == "vllm" else options.DEFAULT_CLUSTER
    prefill_count, decode_count = parse_cluster(cluster or default)
    if burst and engine != "vllm":
        raise ConfigError("--burst measures real engines; simulated ones have `spillway demo`")
    if engine == "vllm":
        counts = (prefill_count, decode_count)
        vllm_plan = up_vllm.make_plan(vllm_python, *counts, slo_tbt_s, stock=stock)
        if burst:
            up_vllm.measure(vllm_plan, policy, seed)
        else:
            up_vllm.run(vllm_plan, policy, port=port, slo_ttft_s=slo_ttft_s, slo_tbt_s=slo_tbt_s)
        return
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
    _run(plan)


def _run(plan: ClusterPlan) -> None:
    import asyncio
    from contextlib import suppress

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

Watch it: {url}/dashboard (and /metrics, /debug/decisions)
Kill an engine by its pid and see its traffic move. Ctrl-C stops everything."""
