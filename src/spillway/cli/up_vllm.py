"""`spillway up --engine vllm`: real vLLM engines on this machine's processor, and a router.

The engines run in an environment of their own (`make vllm-env`); this process only drives them and
holds the router.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spillway.cli.demo import Act
    from spillway.cli.vllm_burst import Burst
    from spillway.vllmcluster.cluster import VllmCluster
    from spillway.vllmcluster.plan import VllmPlan

DEFAULT_CLUSTER = "1p1d"
FOLDER = "build/up/vllm"
PAGE = "build/vllm-demo.html"
PROBE_SEED = 1


def make_plan(
    python: Path, prefill_count: int, decode_count: int, slo_tbt_s: float, *, stock: bool
) -> VllmPlan:
    """Return what to start. Raises ConfigError when there is no vLLM, or the nodes do not fit."""
    from spillway.core.errors import ConfigError
    from spillway.vllmcluster.plan import VllmPlan

    if not python.exists():
        raise ConfigError(
            f"--vllm-python: {python} does not exist; make the environment of vLLM with"
            " `make vllm-env`, or name an interpreter that has vLLM, NIXL and msgspec"
        )
    return VllmPlan(
        folder=Path(FOLDER),
        python=python,
        prefill_count=prefill_count,
        decode_count=decode_count,
        shape="m10",
        plugin=None if stock else {"tbt_s": slo_tbt_s},
    )


def run(plan: VllmPlan, policy: str, *, port: int, slo_ttft_s: float, slo_tbt_s: float) -> None:
    """Run the cluster until Ctrl-C."""
    with suppress(KeyboardInterrupt):  # the way to end it, and everything has ended by then
        asyncio.run(stay_up(plan, policy, port=port, slo_ttft_s=slo_ttft_s, slo_tbt_s=slo_tbt_s))


def measure(plan: VllmPlan, policy: str, seed: int) -> None:
    """Compare the policy with static disaggregation on one burst, and write the report.

    Raises ConfigError, also on an unknown policy, before anything starts, and NodeError.
    """
    from spillway.cli.demo import Stage, show
    from spillway.cli.rows import Workload
    from spillway.cli.vllm_burst import BASELINE
    from spillway.core.policies import build_policy

    build_policy(policy)
    policies = list(dict.fromkeys((BASELINE, policy)))
    burst, law_name, acts = asyncio.run(_play(plan, policies, seed))
    workload = Workload(burst.rows, burst.title, (), {"command": "up --engine vllm --burst"})
    stage = Stage(workload, plan.prefill_count, plan.decode_count, law_name, *burst.slo, seed)
    show(stage, acts, None, Path(PAGE), None)


async def _play(plan: VllmPlan, policies: Sequence[str], seed: int) -> tuple[Burst, str, list[Act]]:
    """Run the policies one after the other on the same engines, on a burst of their speed."""
    from spillway.cli.output import announce
    from spillway.cli.vllm_burst import believe_speed, make_burst
    from spillway.vllmcluster.cluster import VllmCluster

    _note_start(plan)
    async with VllmCluster(plan) as cluster:
        law = await believe_speed(cluster, seed)
        burst = make_burst(law, seed)
        announce(burst.title, ())
        return burst, law.name, [await _act(cluster, burst, policy) for policy in policies]


async def _act(cluster: VllmCluster, burst: Burst, policy: str) -> Act:
    from spillway.cli.demo import find_example, make_act
    from spillway.cli.vllm_burst import router_for, send_burst, with_kv_moved

    async with router_for(cluster, policy, burst.slo) as url:
        result = await send_burst(url, burst, policy)
        example = await find_example(url)
    records = with_kv_moved(result.records, cluster.plan.kv_bytes_per_token)
    return make_act(policy, result, records, example)


def _note_start(plan: VllmPlan) -> None:
    from spillway.cli.output import note

    count = plan.prefill_count + plan.decode_count
    note(f"starting {count} vLLM engines on the processor; this takes half a minute ...")


async def stay_up(
    plan: VllmPlan, policy: str, *, port: int, slo_ttft_s: float, slo_tbt_s: float
) -> None:
    """Run engines and a router until cancelled, or until an engine ends. Raises NodeError."""
    from spillway.cli.output import note
    from spillway.cli.vllm_burst import believe_speed
    from spillway.router.app import serve_config
    from spillway.vllmcluster.cluster import VllmCluster
    from spillway.vllmcluster.routing import router_config

    _note_start(plan)
    async with VllmCluster(plan) as cluster:
        await believe_speed(cluster, PROBE_SEED)
        config = router_config(
            cluster, policy, port=port, slo_ttft_s=slo_ttft_s, slo_tbt_s=slo_tbt_s
        )
        router = await serve_config(config)
        try:
            typer.echo(welcome(cluster, policy, f"http://{router.settings.host}:{router.port}"))
            ends: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(node.ended.wait()) for node in cluster.nodes.values()
            ]
            await asyncio.wait([*ends, router.broken], return_when=asyncio.FIRST_COMPLETED)
            ended = [node.name for node in cluster.nodes.values() if node.ended.is_set()]
            note(f"ended by itself: {', '.join(ended) or 'the router'}; see {plan.folder}")
        finally:
            await router.close()


def welcome(cluster: VllmCluster, policy: str, url: str) -> str:
    """Return what to do with the running cluster, with lines that can be pasted."""
    from spillway.vllmcluster.plan import MODEL_NAME

    body = f'{{"model": "{MODEL_NAME}", "prompt": "Why?", "max_tokens": 16, "stream": true}}'
    json_type = "content-type: application/json"
    engines = "\n".join(
        f"  {node.name:<4}{node.url}   pid {node.pid}" for node in cluster.nodes.values()
    )
    return f"""
{typer.style(f"The router ({policy}) is at {url}", bold=True)}
{engines}

Ask it something (the model is tiny and random, and so are its answers):
  curl -N {url}/v1/completions -H '{json_type}' -d '{body}'

Put it under load, then ask why a prompt was deflected:
  spillway load --url {url} --model {MODEL_NAME} --synthetic burst --rate 1 --duration-s 20
  spillway explain --url {url}

Look inside: {url}/metrics, {url}/debug/decisions
Ctrl-C stops everything. Logs: {cluster.plan.folder}"""
