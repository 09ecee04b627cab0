"""What `spillway tune` found: what its `--json` writes, and its table is made of.

Shares are from 0 to 1. A window is a stretch of the workload, simulated from an empty cluster.
"""

from __future__ import annotations

from typing import Any

import msgspec

TUNED_SCHEMA_VERSION = 1

Options = dict[str, bool | int | float | str]


class WindowFigures(msgspec.Struct, frozen=True, kw_only=True):
    """One setting on one window.

    joint_frac: requests that met both targets (99 % of their gaps). late_frac: of the token gaps.
    """

    joint_frac: float
    ttft_p95_s: float
    late_frac: float
    deflected_frac: float


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A setting, as what it changes of the defaults, and its figures per tuning window."""

    options: Options
    windows: tuple[WindowFigures, ...]


class Gain(msgspec.Struct, frozen=True, kw_only=True):
    """What the setting gains over the defaults on held-out windows, window by window.

    The goal `joint` counts the requests that meet both targets, as a share of all; `ttft` the part
    of the p95 TTFT that is saved. least_frac, most_frac: the worst and the best window.
    error_frac: half the width of the 95 % confidence interval of the mean (Student's t).
    """

    mean_frac: float
    least_frac: float
    most_frac: float
    error_frac: float


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """The whole search.

    tried: every setting, the best on the tuning windows first; the defaults change nothing.
    chosen: the best of them. default_held_out, chosen_held_out: both on the held-out windows.
    worth_it: whether the gain there lies outside its own spread and is large enough to matter.
    run_count: simulated runs in all.
    """

    policy: str
    goal: str
    tried: tuple[Tried, ...]
    chosen: Options
    default_held_out: tuple[WindowFigures, ...]
    chosen_held_out: tuple[WindowFigures, ...]
    gain: Gain
    worth_it: bool
    run_count: int
    spillway_version: str = ""
    config: dict[str, Any] = {}
    schema_version: int = TUNED_SCHEMA_VERSION
