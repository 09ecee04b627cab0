"""Shadow mode on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from spillway.cli import routeroptions

Shadow = Annotated[
    str | None,
    typer.Option(
        "--shadow",
        metavar="NAME",
        help="A second policy that decides every request too, and routes none: what it would have "
        "done is logged, counted and reported.",
        rich_help_panel=routeroptions.DECISIONS,
    ),
]
Happened = Annotated[
    Path | None,
    typer.Option(
        "--happened",
        metavar="FILE",
        help="The file of the router's log_path, or of request records: the first tokens that "
        "really came, to set beside the predictions.",
    ),
]


def show_logged(log: Path, ttfts_s: dict[str, float], json: Path | None) -> None:
    """Show what the shadow in a decision log would have done, and write it as JSON if asked.

    Raises ConfigError when the log is none, or none looked on.
    """
    import msgspec

    from spillway.cli.explain import read_log
    from spillway.cli.output import note, write_bytes
    from spillway.core.errors import ConfigError
    from spillway.report.shadow import compare_shadow, print_shadow

    found = compare_shadow(read_log(log, None)[::-1], ttfts_s)
    if found is None:
        raise ConfigError(
            f"{log}: no shadow looked on when this was decided; name one with serve --shadow or "
            "simulate --shadow, or replay with --config FILE --policy NAME"
        )
    print_shadow(found)
    if json is not None:
        write_bytes(json, msgspec.json.format(msgspec.json.encode(found)) + b"\n")
        note(f"figures: {json}")
