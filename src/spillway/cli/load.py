"""`spillway load`: an open-loop client against any OpenAI endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillway.cli import options

if TYPE_CHECKING:
    from spillway.cli.output import Advance
    from spillway.loadgen.runner import LoadOptions, LoadResult
    from spillway.workload.row import Row

LATE_CLIENT_S = 0.05  # a client later than this measures itself
ERRORS_SHOWN_MAX = 5


Url = Annotated[str, typer.Option(help="The endpoint, without /v1.")]
Model = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Model to ask for. Default: the first one it lists."),
]
Headers = Annotated[
    list[str] | None,
    typer.Option("--header", metavar="TEXT", help="Send 'Name: value' along; repeat for more."),
]
Prompts = Annotated[
    str,
    typer.Option(
        help="ids sends token ids, so lengths are exact; text sends words.",
        rich_help_panel=options.WORKLOAD,
    ),
]


def load(
    url: Url = "http://127.0.0.1:8000",
    model: Model = None,
    header: Headers = None,
    trace: options.Trace = None,
    synthetic: options.Synthetic = None,
    rate: options.Rate = None,
    duration_s: options.Duration = 30.0,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    apply: options.Apply = None,
    seed: options.Seed = options.DEFAULT_SEED,
    prompts: Prompts = "ids",
    slo_ttft_s: options.SloTtft = 1.0,
    slo_tbt_s: options.SloTbt = 0.06,
    json: options.Json = None,
    records: options.Records = None,
) -> None:
    """Send a workload to any OpenAI endpoint and measure every token.

    Open loop: a request goes out when it is due, whatever became of the ones
    before it, so a slow server cannot slow its own load down. The client reports
    how late it was itself.

    [bold]Examples[/bold]
      spillway up                                   (in another terminal)
      spillway load --synthetic burst --duration-s 20
      spillway load --url http://gateway:8000 --trace trace.csv --speed-up 2
    """
    import asyncio

    from spillway.cli.output import announce
    from spillway.cli.rows import Ask, choose_rows
    from spillway.core.errors import ConfigError
    from spillway.core.types import Slo
    from spillway.loadgen.runner import LoadOptions, PromptKind

    if prompts not in set(PromptKind):
        raise ConfigError(f"--prompts {prompts!r}: choose {' or '.join(PromptKind)}")
    part = (duration_s, from_s, to_s, speed_up, seed)
    workload = choose_rows(Ask(trace, synthetic, rate, *part, operations=apply))
    load_options = LoadOptions(
        base_url=url,
        model=model or asyncio.run(_first_model(url)),
        slo=Slo(slo_ttft_s, slo_tbt_s),
        prompt_kind=PromptKind(prompts),
        headers=headers_of(header or []),
    )
    announce(workload.title, workload.notes)
    result = asyncio.run(send(workload.rows, load_options, "sending"))
    config = {"command": "load", "url": url, "model": load_options.model, **workload.config}
    config |= {"slo_ttft_s": slo_ttft_s, "slo_tbt_s": slo_tbt_s, "prompts": prompts}
    _show(result, url, seed, config, json, records)


async def send(rows: list[Row], load_options: LoadOptions, label: str) -> LoadResult:
    """Run the load with a progress bar, and return what came of it."""
    from spillway.cli.output import progress

    with progress(label, len(rows)) as advance:
        return await send_telling(rows, load_options, advance)


async def send_telling(rows: list[Row], load_options: LoadOptions, advance: Advance) -> LoadResult:
    """Run the load, tell `advance` how far it is, and return what came of it."""
    from spillway.loadgen.runner import Progress, run_load

    def show(now: Progress) -> None:
        failed = f", {now.failed} failed" if now.failed else ""
        advance(now.ended, f"{now.ended}/{now.planned} answered, {now.in_flight} open{failed}")

    return await run_load(rows, load_options, progress=show)


def complaints(result: LoadResult) -> list[str]:
    """Return what casts doubt on the figures, a line each: failures, and a late client."""
    from collections import Counter

    lines = []
    errors = Counter(one.error for one in result.records if one.outcome == "failed")
    if errors:
        most = [f"{count} x {error}" for error, count in errors.most_common(ERRORS_SHOWN_MAX)]
        lines.append(
            f"warning: {errors.total()} of {len(result.records)} requests failed: {'; '.join(most)}"
        )
    if result.lateness.p99_s > LATE_CLIENT_S:
        lines.append(
            f"warning: the client was late (p99 {result.lateness.p99_s * 1e3:.0f} ms): this "
            "machine was too busy for these figures to be trusted; lower the load"
        )
    return lines


def _show(
    result: LoadResult,
    url: str,
    seed: int,
    config: dict[str, Any],
    json: options.Json,
    records: options.Records,
) -> None:
    from spillway.cli.output import make_results, note, write_records, write_results
    from spillway.report.tables import print_comparison
    from spillway.wire.results import summarise

    run = summarise(policy=url, records=result.records, gaps=result.gaps, wall_s=result.wall_s)
    print_comparison([run])
    late = result.lateness
    note(f"client lateness: p50 {late.p50_s * 1e3:.1f} ms, p99 {late.p99_s * 1e3:.1f} ms")
    for line in complaints(result):
        note(line)
    config["lateness_s"] = {"p50": late.p50_s, "p99": late.p99_s, "max": late.max_s}
    if json is not None:
        write_results(json, make_results([run], seed, config))
    if records is not None:
        write_records(records, result.records)


def headers_of(given: list[str]) -> dict[str, str]:
    from spillway.core.errors import ConfigError

    headers = {}
    for one in given:
        name, colon, value = one.partition(":")
        if not (colon and name.strip()):
            raise ConfigError(f"--header {one!r}: write it as 'Name: value'")
        headers[name.strip()] = value.strip()
    return headers


async def _first_model(url: str) -> str:
    """Return the first model that the endpoint lists. Raises ConfigError with the remedy."""
    import aiohttp

    from spillway.core.errors import ConfigError

    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10.0)) as session,
            session.get(f"{url.rstrip('/')}/v1/models") as answer,
        ):
            if answer.status == 200:
                return str((await answer.json())["data"][0]["id"])
            said = f"status {answer.status}"
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ConfigError(
            f"--url {url}: cannot be reached: {error}; spillway up starts something to try it on"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError):
        said = "an answer without a model"
    raise ConfigError(f"--url {url}: /v1/models gave {said}; name the model with --model")
