"""The `spillway` command: the list of its subcommands, and what an error looks like.

Importing a subcommand must stay cheap (`spillway --help` answers in a fraction of a second), so a
subcommand's file imports the simulator, the router and so on inside its function.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from spillway.cli import (
    capacity,
    check,
    demo,
    engine,
    explain,
    fit,
    listings,
    load,
    profile,
    replay,
    report,
    serve,
    simulate,
    sweep,
    trace,
    tune,
    up,
)
from spillway.core.errors import ConfigError, NodeError

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

ABOUT = """
Fast first tokens from a disaggregated LLM cluster, also when a burst of long prompts lands.

A router in front of vLLM's prefill and decode pools. While the prefill pool
is congested it [bold]deflects[/bold] prompts to decode nodes, where they run in chunks
so small that no running stream misses its time between tokens.

New here? [bold cyan]spillway demo[/bold cyan] runs a whole cluster on this machine, without a GPU.
"""


def build_app() -> typer.Typer:
    """Return the command line."""
    app = typer.Typer(
        name="spillway",
        help=ABOUT,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    panel = "Try it, without a GPU"
    app.command(rich_help_panel=panel)(demo.demo)
    app.command(rich_help_panel=panel)(up.up)
    app.command(rich_help_panel=panel)(engine.engine)
    panel = "Run it"
    app.command(rich_help_panel=panel)(serve.serve)
    app.command(rich_help_panel=panel)(check.check)
    app.command(rich_help_panel=panel)(explain.explain)
    app.command(rich_help_panel=panel)(replay.replay)
    panel = "Measure"
    app.command(rich_help_panel=panel)(simulate.simulate)
    app.command(rich_help_panel=panel, cls=sweep.SweepCommand)(sweep.sweep)
    app.command(rich_help_panel=panel)(report.report)
    app.command(rich_help_panel=panel)(capacity.capacity)
    app.command(rich_help_panel=panel)(tune.tune)
    app.command(rich_help_panel=panel)(load.load)
    app.command(rich_help_panel=panel)(profile.profile)
    app.command(rich_help_panel=panel)(fit.fit)
    app.add_typer(trace.build_trace_app(), rich_help_panel=panel)
    panel = "Look up"
    app.command(rich_help_panel=panel)(listings.policies)
    app.command(rich_help_panel=panel)(listings.profiles)
    app.command(rich_help_panel=panel)(listings.version)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        listings.version()
        raise typer.Exit


def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """The options of `spillway` itself; `_show_version` has acted on them already."""


def run() -> None:
    """Run the command line of this process. Errors that are ours to explain take one line."""
    try:
        build_app()()
    except ConfigError as error:
        fail(str(error), EXIT_USAGE)
    except NodeError as error:
        fail(str(error), EXIT_ERROR)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def fail(message: str, status: int) -> None:
    """Print one line on stderr and exit with `status`."""
    print(f"spillway: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
