"""`spillway engine`: one simulated vLLM node behind a real HTTP port."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE


def engine(
    role: Annotated[
        str, typer.Option(help="prefill or decode: how it fills its steps.")
    ] = "decode",
    host: options.Host = "127.0.0.1",
    port: options.Port = 8001,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Node id. Default: role and port.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model name that it serves.")] = "fake-llama",
    profile: options.Profile = DEFAULT_PROFILE,
    bias: Annotated[
        float, typer.Option(help="Steps really take so many times what the profile says.")
    ] = 1.0,
    noise: Annotated[
        float, typer.Option(help="Spread of step times around that; 0.1 is about 10 %.")
    ] = 0.0,
    seed: options.Seed = options.DEFAULT_SEED,
    slo_tbt_s: options.SloTbt = 0.06,
    stock: Annotated[
        bool, typer.Option("--stock", help="Behave as vLLM without a plug-in: no reports.")
    ] = False,
    chunk_tokens: Annotated[
        int, typer.Option(help="Largest prefill chunk of a step; with --stock, its fixed size.")
    ] = 2048,
    time_scale: Annotated[
        float, typer.Option(help="Run so many times as fast as the profile.")
    ] = 1.0,
    records: options.Records = None,
    end_with_parent: options.EndWithParent = False,
) -> None:
    """Run one fake engine: a simulated vLLM node behind a real HTTP port.

    It answers /v1/completions and /v1/chat/completions at the pace of the profile's GPU, hands KV
    over as vLLM does (kv_transfer_params), and shows vLLM's metric names. The text it writes
    depends on the prompt alone, so a lost or doubled token is visible.

    [bold]Example[/bold]: a decode node on port 8001

      spillway engine --role decode --port 8001

      curl -N localhost:8001/v1/completions -d '{"prompt": "hi", "max_tokens": 8, "stream": true}'
    """
    from spillway.cli.parent import end_with_parent as watch_parent
    from spillway.cli.parent import print_ready
    from spillway.core.errors import ConfigError
    from spillway.core.types import ChunkMode, Role
    from spillway.fakeengine.engine import EngineSettings, RunningEngine, run_engine

    if role not in set(Role):
        raise ConfigError(f"--role {role!r}: choose {' or '.join(Role)}")
    if end_with_parent:
        watch_parent()
    settings = EngineSettings(
        role=Role(role),
        host=host,
        port=port,
        node_id=name,
        profile=profile,
        model=model,
        bias_frac=bias,
        noise_frac=noise,
        seed=seed,
        slo_tbt_s=slo_tbt_s,
        chunk_mode=ChunkMode.STATIC if stock else ChunkMode.ENGINE,
        chunk_tokens_max=chunk_tokens,
        time_scale=time_scale,
        stock=stock,
        records=_text(records),
    )

    def ready(engine: RunningEngine) -> None:
        print_ready(f"{role} node {engine.backend.node_id}", engine.url)

    run_engine(settings, ready)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
