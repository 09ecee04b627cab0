"""`spillway serve`: the router, in front of real engines or simulated ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from spillway.cli import options, routeroptions, shadowing

if TYPE_CHECKING:
    from spillway.router.app import Server
    from spillway.router.workers import Supervisor
    from spillway.wire.config import ClusterConfig


FIRST_LOOK_S = 5.0  # more than a node has to answer (connect_s, 3 s) and to be asked again

Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N",
        min=1,
        max=64,
        help="Run so many processes behind one port, about one per core.",
        rich_help_panel=options.LISTEN,
    ),
]
AsWorker = Annotated[bool, typer.Option("--as-worker", hidden=True, help="Be one of them.")]


def serve(
    prefill: routeroptions.PrefillUrls = None,
    decode: routeroptions.DecodeUrls = None,
    config: routeroptions.ConfigFile = None,
    profile: routeroptions.NodeProfile = None,
    decode_chunk_tokens: routeroptions.StockChunkTokens = None,
    kv_capacity_tokens: routeroptions.KvCapacity = None,
    tbt_margin: routeroptions.RouterTbtMargin = None,
    policy: routeroptions.RouterPolicy = None,
    shadow: shadowing.Shadow = None,
    slo_ttft_s: routeroptions.RouterSloTtft = None,
    slo_tbt_s: routeroptions.RouterSloTbt = None,
    decision_log: routeroptions.DecisionLog = None,
    host: routeroptions.RouterHost = None,
    port: routeroptions.RouterPort = None,
    workers: Workers = None,
    as_worker: AsWorker = False,
    end_with_parent: options.EndWithParent = False,
) -> None:
    """Run the router in front of prefill and decode engines.

    Clients talk to it as to vLLM: /v1/completions, /v1/chat/completions,
    /v1/models. Answers say what was decided in x-spillway-route and
    x-spillway-reason. See also /health, /metrics and /debug/decisions.

    [bold]Examples[/bold]
      spillway serve --config examples/cluster.yaml
      spillway serve --prefill http://10.0.0.11:8000 \\
          --decode http://10.0.0.21:8000 --decode http://10.0.0.22:8000 \\
          --profile llama-3.1-8b-h100 --decode-chunk-tokens 512

    How to start vLLM for it: docs/running-with-vllm.md
    """
    from spillway.cli.parent import end_with_parent as watch_parent

    if as_worker:
        raise typer.Exit(_be_worker())
    nodes = NodeFlags(
        prefill,
        decode,
        profile,
        decode_chunk_tokens,
        kv_capacity_tokens,
        tbt_margin,
        slo_ttft_s,
        slo_tbt_s,
    )
    log_path = None if decision_log is None else str(decision_log)
    listen = {"host": host, "port": port, "decision_log_path": log_path, "workers": workers}
    chosen = build_config(config, nodes, policy, listen, shadow=shadow)
    if end_with_parent:
        watch_parent()
    raise typer.Exit(_run(chosen, config))


class NodeFlags(NamedTuple):
    """The flags that say the same as a configuration file; None where they were not given."""

    prefill: list[str] | None = None
    decode: list[str] | None = None
    profile: str | None = None
    decode_chunk_tokens: int | None = None
    kv_capacity_tokens: int | None = None
    tbt_margin: float | None = None
    slo_ttft_s: float | None = None
    slo_tbt_s: float | None = None


def build_config(
    file: Path | None,
    nodes: NodeFlags,
    policy: str | None,
    listen: dict[str, Any],
    *,
    shadow: str | None = None,
) -> ClusterConfig:
    """Return the configuration of a file or of flags; the other arguments override a file.

    Raises ConfigError, naming the flag or the file and its key.
    """
    from msgspec.structs import replace

    from spillway.core.errors import ConfigError
    from spillway.core.policies import build_policy
    from spillway.wire.config import PolicyConfig, load_config

    listen = {name: value for name, value in listen.items() if value is not None}
    if file is None:
        return _from_flags(nodes, policy, listen, shadow)
    for name, value in nodes._asdict().items():
        if value is not None:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag}: with --config it belongs into the file {file}")
    config = load_config(file)
    if policy is not None:
        build_policy(policy)
        config = replace(config, policy=PolicyConfig(name=policy))
    if shadow is not None:
        build_policy(shadow)
        config = replace(config, shadow=PolicyConfig(name=shadow))
    return replace(config, router=replace(config.router, **listen))


def _from_flags(
    nodes: NodeFlags, policy: str | None, listen: dict[str, Any], shadow: str | None
) -> ClusterConfig:
    from msgspec.structs import replace

    from spillway.core.errors import ConfigError
    from spillway.core.types import ChunkMode
    from spillway.wire.config import config_from_flags

    if not (nodes.prefill and nodes.decode):
        missing = [flag for flag in ("prefill", "decode") if not getattr(nodes, flag)]
        raise ConfigError(
            f"which engines? --{' and --'.join(missing)} URL missing; give both, or --config FILE; "
            "to try it without engines: spillway up"
        )
    given = {
        "profile": nodes.profile,
        "policy": policy,
        "shadow": shadow,
        "slo_ttft_s": nodes.slo_ttft_s,
        "slo_tbt_s": nodes.slo_tbt_s,
    }
    set_flags: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = config_from_flags(nodes.prefill, nodes.decode, router=listen, **set_flags)
    chunk_tokens = nodes.decode_chunk_tokens
    of_nodes: dict[str, Any] = {
        "chunk_mode": None if chunk_tokens is None else ChunkMode.STATIC,
        "chunk_tokens_max": chunk_tokens,
        "kv_capacity_tokens": nodes.kv_capacity_tokens,
        "tbt_margin_frac": nodes.tbt_margin,
    }
    set_of_nodes = {name: value for name, value in of_nodes.items() if value is not None}
    return replace(config, defaults=replace(config.defaults, **set_of_nodes))


def _be_worker() -> int:
    from spillway.cli.parent import end_with_parent
    from spillway.router.workers import read_order, run_worker

    order = read_order()
    end_with_parent()
    return run_worker(order)


def _run(config: ClusterConfig, path: Path | None) -> int:
    """Run the router, as one process or as several; return the exit code."""
    from spillway.router.app import run
    from spillway.router.settings import RouterSettings
    from spillway.router.workers import run_workers

    workers = RouterSettings(**config.router.given()).workers
    if workers > 1:
        return run_workers(config, workers, lambda crew: _say_all_ready(config, crew), path)
    return run(config, lambda server: _say_ready(config, server), path)


def _say_all_ready(config: ClusterConfig, crew: Supervisor) -> None:
    from spillway.cli.output import note
    from spillway.cli.parent import print_ready

    settings = crew.settings
    note(
        f"{crew.workers_wanted} workers of {config.policy.name}; all of them can be seen at "
        f"http://{settings.admin_host}:{crew.admin_port}/dashboard; Ctrl-C stops them"
    )
    print_ready("router", f"http://{settings.host}:{crew.port}")


def _say_ready(config: ClusterConfig, server: Server) -> None:
    import asyncio

    from spillway.cli.output import note
    from spillway.cli.parent import print_ready

    shadow = config.shadow
    roles = Counter(node.spec.role.value for node in server.fleet.nodes.values())
    looking_on = f", {shadow.text()} looking on" if shadow is not None else ""
    settings, own_port = server.settings, server.admin_port
    address = f"{settings.host}:{server.port}"
    watched = address if own_port is None else f"{settings.admin_host}:{own_port.port}"
    note(
        f"{config.policy.name} over {roles['prefill']} prefill and {roles['decode']} decode "
        f"nodes{looking_on}; watch it at http://{watched}/dashboard; Ctrl-C stops it"
    )
    print_ready("router", f"http://{address}")
    asyncio.get_running_loop().call_later(FIRST_LOOK_S, _say_who_is_silent, server)


def _say_who_is_silent(server: Server) -> None:
    """Say which nodes have not answered since the start: with a wrong URL nothing else does."""
    from spillway.cli.output import note

    seen = server.fleet.health.nodes
    silent = [name for name in server.fleet.nodes if name in seen and not seen[name].is_up]
    if silent:
        note(
            f"no answer yet from {', '.join(silent)}; spillway check, with the same nodes, says why"
        )
