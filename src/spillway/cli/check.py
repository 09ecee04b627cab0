"""`spillway check`: asks every node what it is, and says whether the cluster can work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spillway.cli import options, routeroptions
from spillway.cli.serve import NodeFlags, build_config

if TYPE_CHECKING:
    from spillway.core.stock import ExpectedBatch
    from spillway.wire.checks import CheckResult
    from spillway.wire.config import ClusterConfig

LOAD = "The load that chunks are judged by"

Streams = Annotated[
    int, typer.Option(metavar="N", min=1, help="Streams on a decode node.", rich_help_panel=LOAD)
]
ContextTokens = Annotated[
    int, typer.Option(metavar="N", min=1, help="KV tokens of each.", rich_help_panel=LOAD)
]
PromptTokens = Annotated[
    int,
    typer.Option(metavar="N", min=1, help="Length of a deflected prompt.", rich_help_panel=LOAD),
]
TryPairs = Annotated[
    bool,
    typer.Option(
        "--try-pairs",
        help="Also send one short prompt over each pair of nodes, KV and all.",
    ),
]


def check(
    prefill: routeroptions.PrefillUrls = None,
    decode: routeroptions.DecodeUrls = None,
    config: routeroptions.ConfigFile = None,
    profile: routeroptions.NodeProfile = None,
    decode_chunk_tokens: routeroptions.StockChunkTokens = None,
    kv_capacity_tokens: routeroptions.KvCapacity = None,
    tbt_margin: routeroptions.RouterTbtMargin = None,
    slo_tbt_s: routeroptions.RouterSloTbt = None,
    streams: Streams = 32,
    context_tokens: ContextTokens = 2000,
    prompt_tokens: PromptTokens = 8000,
    try_pairs: TryPairs = False,
    json: options.Json = None,
) -> None:
    """Ask every node what it is, and say whether they fit together.

    Looks at reachability, role, model, vLLM version, KV connector, KV room and
    reports, and at what each decode node's prefill chunks do to running streams.
    Prints the flags that make a stock decode node usable. Only reads pages,
    unless --try-pairs.

    The exit status is 0 if all is well, 1 if something is wrong, 2 on bad input.

    [bold]Examples[/bold]
      spillway check --config cluster.yaml
      spillway check --prefill http://10.0.0.11:8000 --decode http://10.0.0.21:8000 \\
          --profile llama-3.1-8b-h100 --streams 64
    """
    import asyncio

    from spillway.cli.output import working
    from spillway.core.stock import ExpectedBatch
    from spillway.report.checked import print_check

    nodes = NodeFlags(
        prefill=prefill,
        decode=decode,
        profile=profile,
        decode_chunk_tokens=decode_chunk_tokens,
        kv_capacity_tokens=kv_capacity_tokens,
        tbt_margin=tbt_margin,
        slo_tbt_s=slo_tbt_s,
    )
    chosen = build_config(config, nodes, None, {})
    batch = ExpectedBatch(streams, context_tokens, prompt_tokens)
    with working("asking the nodes"):
        result = asyncio.run(_checked(chosen, batch, try_pairs=try_pairs))
    print_check(result, sys.stdout)
    if json is not None:
        _write(json, result)
    raise typer.Exit(0 if result.is_fine else 1)


async def _checked(config: ClusterConfig, batch: ExpectedBatch, *, try_pairs: bool) -> CheckResult:
    from spillway import __version__
    from spillway.router.dial import dial
    from spillway.router.discovery import Discovery
    from spillway.router.pairs import try_every_pair
    from spillway.router.settings import RouterSettings
    from spillway.router.verify import judge
    from spillway.wire.checks import CheckResult, ExpectedLoad

    settings = RouterSettings(**config.router.given())
    discovery = Discovery(config)
    await discovery.start()
    discovery.close()
    nodes = discovery.all_nodes(config)
    tbt_s = min(slo.tbt_s for slo in config.slos().values())
    answers = await dial(nodes, settings)
    checks, findings = judge(answers, batch, tbt_s, settings.kv_block_tokens)
    if try_pairs:
        findings += await try_every_pair(answers, settings)
    return CheckResult(
        spillway_version=__version__,
        load=ExpectedLoad(**batch._asdict(), tbt_s=tbt_s),
        nodes=checks,
        findings=findings,
    )


def _write(path: Path, result: CheckResult) -> None:
    import msgspec

    from spillway.cli.output import write_bytes

    write_bytes(path, msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n")
