"""What a search for settings found, as a table, a verdict and a piece of configuration."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from math import exp, log
from string import ascii_uppercase
from typing import TextIO

from spillway.report.grid import Cell, Grid, print_grid
from spillway.report.tables import percent, seconds
from spillway.wire.tuned import Options, Tried, Tuned, WindowFigures

LINE_CHARS = 80
TRIED_SHOWN = 5
HEAD = (
    *("setting", "windows", "both\ntargets\nmet %", "least\n%", "TTFT\np95 s", "late\ntoken\n%"),
    "deflec-\nted\n%",
)
DEFAULTS = "defaults"
CHOSEN = "A"  # the best of all, unless the defaults are


def print_tuned(found: Tuned, stream: TextIO | None = None) -> None:
    """Print the best settings, what the best is worth on held-out windows, and what to do."""
    stream = stream or sys.stdout
    print_grid(tuned_grid(found), stream)
    print(file=stream)
    for name, one in _shown(found).items():
        if one.options:
            print(f"{name}: {words(one.options)}", file=stream)
    print("", *(textwrap.fill(line, LINE_CHARS) for line in said(found)), sep="\n", file=stream)
    if found.worth_it:
        print("", snippet(found), sep="\n", file=stream)


def tuned_grid(found: Tuned) -> Grid:
    """Return the best settings on the tuning windows, then the two compared on the others."""
    rows = [_row(name, "tuning", one.windows) for name, one in _shown(found).items()]
    rows.append(_row(DEFAULTS, "held out", found.default_held_out))
    if found.chosen:
        rows.append(_row(CHOSEN, "held out", found.chosen_held_out, marked=found.worth_it))
    return Grid(HEAD, tuple(rows), left=2)


def _shown(found: Tuned) -> dict[str, Tried]:
    """Return the best settings and the defaults, by the letters that the table calls them."""
    best = [one for one in found.tried if one.options][:TRIED_SHOWN]
    shown = [one for one in found.tried if one in best or not one.options]
    letters = iter(ascii_uppercase)
    return {next(letters) if one.options else DEFAULTS: one for one in shown}


def said(found: Tuned) -> list[str]:
    """Return the verdict as sentences."""
    windows = len(found.default_held_out)
    searched = (
        f"{len(found.tried)} settings on {len(found.tried[0].windows)} tuning windows, "
        f"{found.run_count} runs in all."
    )
    if not found.chosen:
        return [searched, "Keep the defaults: no setting was better on the tuning windows."]
    gain = found.gain
    what, unit = _unit(found.goal)
    spread = (
        f"On {windows} held-out windows A gains {_signed(gain.mean_frac)} "
        f"{unit} {what}, plus or minus {100 * gain.error_frac:.2f} (95 % confidence), from "
        f"{_signed(gain.least_frac)} to {_signed(gain.most_frac)}."
    )
    if found.worth_it:
        return [searched, spread, "That is outside the spread: worth setting."]
    if gain.mean_frac <= 0:
        why = "on windows that it was not chosen on, A is no better."
    elif gain.mean_frac <= gain.error_frac:
        why = "that is inside the spread of the windows, and may well be luck."
    elif found.goal != "joint" and _joint(found.chosen_held_out) < _joint(found.default_held_out):
        why = "it costs requests that met both targets, or is too small to matter."
    else:
        why = "that is too small to matter."
    return [searched, spread, f"Keep the defaults: {why}"]


def snippet(found: Tuned) -> str:
    """Return the piece of `cluster.yaml` that sets what was found."""
    lines = [f"    {key}: {_yaml(value)}" for key, value in found.chosen.items()]
    return "\n".join(["policy:", f"  name: {found.policy}", "  options:", *lines])


def words(options: Options) -> str:
    """Return a setting as it stands behind a policy's name: `hold=off,margin_max=1.6`."""
    return ",".join(f"{key}={_switch(value)}" for key, value in options.items())


def _switch(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unit(goal: str) -> tuple[str, str]:
    if goal == "joint":
        return "of requests that meet both targets", "percentage points"
    return "of the p95 TTFT", "%"


def _signed(value_frac: float) -> str:
    return f"{100 * value_frac:+.2f}"


def _joint(windows: Sequence[WindowFigures]) -> float:
    return sum(one.joint_frac for one in windows) / len(windows)


def _row(
    setting: str, which: str, windows: Sequence[WindowFigures], *, marked: bool = False
) -> tuple[Cell, ...]:
    count = len(windows)
    p95_s = exp(sum(log(max(one.ttft_p95_s, 1e-6)) for one in windows) / count)
    texts = (
        setting,
        which,
        percent(_joint(windows)),
        percent(min(one.joint_frac for one in windows)),
        seconds(p95_s),
        percent(sum(one.late_frac for one in windows) / count),
        percent(sum(one.deflected_frac for one in windows) / count),
    )
    return tuple(Cell(text, marked and at == 0) for at, text in enumerate(texts))
