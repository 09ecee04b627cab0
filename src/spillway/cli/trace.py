"""`spillway trace describe | convert`: what a workload looks like, and how to keep it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from spillway.cli import options
from spillway.cli.values import picture

if TYPE_CHECKING:
    from spillway.cli.rows import Workload
    from spillway.workload.describe import WorkloadFigures

DRAWN_S = 600.0
LENGTH_COLUMNS = ("mean", "p50", "p95", "p99", "max")

Files = Annotated[
    list[Path] | None,
    typer.Argument(metavar="FILE", help="Traces of any known format; several are merged."),
]
OneFile = Annotated[Path, typer.Argument(metavar="FILE", help="A trace of any known format.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Where to write: our own JSONL.")]
PlotFile = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        callback=picture,
        help="Draw arrivals and lengths, as .svg, .png or .pdf.",
        rich_help_panel=options.OUTPUT,
    ),
]


def build_trace_app() -> typer.Typer:
    """Return the group of commands."""
    app = typer.Typer(name="trace", help="Look at a workload, or rewrite it.", no_args_is_help=True)
    app.command()(describe)
    app.command()(convert)
    return app


def describe(
    files: Files = None,
    synthetic: options.Synthetic = None,
    rate: options.Rate = None,
    duration_s: options.Duration = DRAWN_S,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    apply: options.Apply = None,
    seed: options.Seed = options.DEFAULT_SEED,
    json: options.Json = None,
    plot: PlotFile = None,
) -> None:
    """Show the statistics of a workload: arrivals, lengths, shared prefixes.

    Rows that cannot be used are counted with their reasons. Dispersion is the
    variance of the requests per window over their mean: 1 for Poisson arrivals,
    more for bursts.

    [bold]Examples[/bold]
      spillway trace describe AzureLLMInferenceTrace_code.csv --plot code.png
      spillway trace describe conv.csv code.csv --apply thin=0.5
      spillway trace describe --synthetic sessions
    """
    from spillway.cli.output import announce, note, write_bytes
    from spillway.cli.rows import Ask, choose_rows
    from spillway.workload.describe import describe as figures_of

    part = (duration_s, from_s, to_s, speed_up, seed)
    workload = choose_rows(Ask(files, synthetic, rate, *part, operations=apply))
    announce(workload.title, workload.notes)
    figures = figures_of(workload.rows)
    _print(figures)
    if json is not None:
        write_bytes(json, _encoded(workload, figures, seed))
        note(f"figures: {json}")
    if plot is not None:
        _draw(plot, workload)
        note(f"plot: {plot}")


def convert(
    file: OneFile,
    out: Out,
    from_s: options.FromS = None,
    to_s: options.ToS = None,
    speed_up: options.SpeedUp = 1.0,
    apply: options.Apply = None,
    seed: options.Seed = options.DEFAULT_SEED,
) -> None:
    """Write a trace in our own format: one JSON object per request.

    The result says nothing of the wall clock, and a generator's draw is fixed:
    it replays the same without the seed.

    [bold]Example[/bold]
      spillway trace convert servegen.tar.xz hour.jsonl --from-s 75600 --to-s 79200
    """
    from spillway.cli.output import announce, note, write_bytes
    from spillway.cli.rows import Ask, choose_rows
    from spillway.workload.plain import encode_row

    part = (DRAWN_S, from_s, to_s, speed_up, seed)
    workload = choose_rows(Ask([file], None, None, *part, operations=apply))
    announce(workload.title, workload.notes)
    write_bytes(out, b"".join(map(encode_row, workload.rows)))
    note(f"written: {out}")


def _encoded(workload: Workload, figures: WorkloadFigures, seed: int) -> bytes:
    import msgspec

    from spillway import __version__

    told: dict[str, Any] = {
        "schema_version": 1,
        "spillway_version": __version__,
        "seed": seed,
        "config": {"command": "trace describe", **workload.config},
        "notes": workload.notes,
        "figures": figures,
    }
    return msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n"


def _draw(path: Path, workload: Workload) -> None:
    from spillway.cli.output import make_folder
    from spillway.report.plots import write_figure
    from spillway.report.workloadplot import ShownWorkload, workload_figure

    rows = workload.rows
    shown = ShownWorkload(
        workload.title.rpartition(": ")[0],  # without the totals, which the page has no room for
        [row.arrival_s for row in rows],
        [row.prompt_tokens for row in rows],
        [row.output_tokens for row in rows],
    )
    make_folder(path)
    write_figure(path, workload_figure, shown)


def _print(figures: WorkloadFigures) -> None:
    for title, value in _facts(figures):
        typer.echo(f"{title:<22}{value}")
    typer.echo(f"\n{'windows of':<22}{'peak/mean':>10}{'dispersion':>12}{'tokens peak/mean':>18}")
    for one in figures.burstiness:
        typer.echo(
            f"{f'{one.window_s:g} s':<22}{one.peak_over_mean:>10.1f}{one.dispersion:>12.1f}"
            f"{one.tokens_peak_over_mean:>18.1f}"
        )
    typer.echo(f"\n{'tokens':<12}" + "".join(f"{name:>10}" for name in LENGTH_COLUMNS))
    for name, lengths in (("prompt", figures.prompt_tokens), ("output", figures.output_tokens)):
        values = (getattr(lengths, column) for column in LENGTH_COLUMNS)
        typer.echo(f"{name:<12}" + "".join(f"{value:>10,.0f}" for value in values))


def _facts(figures: WorkloadFigures) -> list[tuple[str, str]]:
    """Return what stands above the tables, a line each; what has no meaning is left out."""
    sessions = f" in {figures.sessions:,} sessions" if figures.sessions else ""
    facts = [("requests", f"{figures.requests:,}{sessions} over {figures.span_s:,.1f} s")]
    if figures.rate_per_s is not None:
        tokens = f"{figures.prompt_tokens_per_s:,.0f} prompt tokens/s"
        facts.append(("rate", f"{figures.rate_per_s:.4g} requests/s, {tokens}"))
    if figures.gap_cv is not None:
        facts.append(("gap CV", f"{figures.gap_cv:.2f} (1 for Poisson arrivals)"))
    facts.append(
        (
            "prompt : output",
            f"{figures.prompt_output_ratio:.1f} of all tokens, "
            f"{figures.median_ratio:.1f} for the median request",
        )
    )
    pearson, spearman = figures.pearson_correlation, figures.spearman_correlation
    if pearson is not None and spearman is not None:
        facts.append(("correlation", f"{pearson:.2f} (Pearson), {spearman:.2f} (Spearman)"))
    facts.append(("longest 5 %", f"{figures.longest_share_frac:.0%} of the prompt tokens"))
    facts.append(("beyond 32,768 tokens", f"{figures.beyond_32k_frac:.1%} of the requests"))
    if figures.shared_prefix_frac is not None:
        facts.append(("shared prefixes", f"{figures.shared_prefix_frac:.0%} of the prompt tokens"))
    return facts
