"""`spillway engine`: one simulated vLLM node behind a real HTTP port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli import options
from spillway.wire.profile import DEFAULT_PROFILE

if TYPE_CHECKING:
    from spillway.core.types import Role as NodeRole
    from spillway.fakeengine.engine import RunningEngine


Role = Annotated[str, typer.Option(help="prefill or decode: how it fills its steps.")]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="Node id. Default: role and port.")]
Model = Annotated[str, typer.Option(help="Model name that it serves.")]
Stock = Annotated[
    bool, typer.Option("--stock", help="Behave as vLLM without a plug-in: no reports.")
]
ChunkTokens = Annotated[
    int, typer.Option(help="Largest prefill chunk of a step; with --stock, its fixed size.")
]
KvTokens = Annotated[
    int | None, typer.Option(help="KV cache, in tokens. Default: what the profile's GPU has.")
]
TimeScale = Annotated[float, typer.Option(help="Run so many times as fast as the profile.")]


def engine(
    role: Role = "decode",
    name: Name = None,
    model: Model = "fake-llama",
    stock: Stock = False,
    chunk_tokens: ChunkTokens = 2048,
    kv_tokens: KvTokens = None,
    time_scale: TimeScale = 1.0,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8001,
    profile: options.Profile = DEFAULT_PROFILE,
    bias: options.Bias = 1.0,
    noise: options.Noise = 0.0,
    seed: options.Seed = options.DEFAULT_SEED,
    slo_tbt_s: options.SloTbt = 0.06,
    tbt_margin: options.TbtMargin = 0.9,
    records: options.Records = None,
    end_with_parent: options.EndWithParent = False,
) -> None:
    """Run one fake engine: a simulated vLLM node behind an HTTP port.

    It answers /v1/completions and /v1/chat/completions at the pace of the
    profile's GPU, hands KV over as vLLM does (kv_transfer_params), and shows
    vLLM's metric names. The text it writes depends on the prompt alone, so that a
    lost or doubled token is visible.

    [bold]Examples[/bold]
      spillway engine --role decode --port 8001
      curl localhost:8001/v1/completions \\
          -d '{"model": "fake-llama", "prompt": "hi", "max_tokens": 8}'
    """
    from spillway.cli.parent import end_with_parent as watch_parent
    from spillway.core.types import ChunkMode
    from spillway.fakeengine.engine import EngineSettings, run_engine

    settings = EngineSettings(
        role=_role(role),
        host=host,
        port=port,
        node_id=name,
        profile=profile,
        model=model,
        bias_frac=bias,
        noise_frac=noise,
        seed=seed,
        slo_tbt_s=slo_tbt_s,
        tbt_margin_frac=tbt_margin,
        chunk_mode=ChunkMode.STATIC if stock else ChunkMode.ENGINE,
        chunk_tokens_max=chunk_tokens,
        kv_capacity_tokens=kv_tokens,
        time_scale=time_scale,
        stock=stock,
        records=None if records is None else str(records),
    )
    if end_with_parent:
        watch_parent()
    run_engine(settings, _say_ready)


def _role(text: str) -> NodeRole:
    from spillway.core.errors import ConfigError
    from spillway.core.types import Role as NodeRole

    if text not in set(NodeRole):
        raise ConfigError(f"--role {text!r}: choose {' or '.join(NodeRole)}")
    return NodeRole(text)


def _say_ready(engine: RunningEngine) -> None:
    from spillway.cli.parent import print_ready

    backend = engine.backend
    print_ready(f"{backend.settings.role} node {backend.node_id}", engine.url)
