"""Which requests a command runs: a part of a trace, or a drawn workload."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from spillway.cli.output import working
from spillway.core.errors import ConfigError
from spillway.wire.profile import load_profile_file
from spillway.workload.operations import (
    Dated,
    apply_operation,
    largest_burst,
    merge,
    speed_up,
    window,
)
from spillway.workload.row import Row
from spillway.workload.synthetic import FAMILIES, family
from spillway.workload.traces import Trace, read_trace

DEFAULT_FAMILY = "burst"


class Workload(NamedTuple):
    """Rows to run, and what to say of them.

    title: one line.   notes: what was done to the rows, a line each.   config: for the results.
    from_s: where the rows begin, before they are cut; 0 afterwards.
    """

    rows: list[Row]
    title: str
    notes: tuple[str, ...]
    config: dict[str, Any]
    from_s: float = 0.0


class BurstCut(NamedTuple):
    """How to cut the largest burst out of a workload, so that a run of it ends in good time.

    window_s: of the burst, after lead_s before it and with tail_s after it. prompt_tokens_max: the
    cut ends before more have arrived. output_tokens_max: longer outputs are shortened.
    """

    window_s: float
    lead_s: float
    prompt_tokens_max: int
    output_tokens_max: int
    tail_s: float = 0.0


class Ask(NamedTuple):
    """What the flags said; None where they said nothing.

    traces: several are merged.   duration_s: of a drawn workload.
    burst: unless from_s or to_s are given, cut this out.
    operations: done to the rows that were cut out, in this order; `workload.operations`.
    """

    traces: Sequence[Path] | None
    synthetic: str | None
    rate_per_s: float | None
    duration_s: float
    from_s: float | None
    to_s: float | None
    speed_up_factor: float
    seed: int
    burst: BurstCut | None = None
    operations: Sequence[str] | None = None


def choose_rows(ask: Ask) -> Workload:
    """Return the workload that the flags describe. Raises ConfigError, also on an empty one."""
    if not ask.traces:
        return _cut(ask, _from_family(ask))
    if ask.synthetic is not None:
        raise ConfigError("--trace and --synthetic exclude each other; give one of them")
    if ask.rate_per_s is not None:
        raise ConfigError("--rate is for --synthetic; a trace takes --speed-up")
    return _cut(ask, _from_traces(ask, ask.traces))


def with_caveats(workload: Workload, profile: str) -> Workload:
    """Return the workload with a note on what every report on this profile has to say."""
    return workload._replace(notes=(*workload.notes, *load_profile_file(profile).caveats()))


def _from_traces(ask: Ask, paths: Sequence[Path]) -> Workload:
    from_s, to_s = ask.from_s or 0.0, inf if ask.to_s is None else ask.to_s
    with working("reading the requests"):
        traces = [read_trace(path, seed=ask.seed, from_s=from_s, to_s=to_s) for path in paths]
    notes = [note for trace in traces for note in (*trace.notes, trace.dropped_text()) if note]
    name = " + ".join(path.name for path in paths)
    config = {
        "trace": name,
        "format": " + ".join(trace.format_name for trace in traces),
        "rows_dropped": _dropped(traces),
    }
    rows, begins_s = traces[0].rows, traces[0].from_s
    if len(traces) > 1:
        rows, how = merge(
            [Dated(window(trace.rows, trace.from_s), trace.clock_ns) for trace in traces]
        )
        begins_s = 0.0
        notes.append(f"{len(traces)} traces merged, {how}")
    return Workload(rows, name, tuple(notes), config, begins_s)


def _dropped(traces: Sequence[Trace]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for trace in traces:
        for reason, count in trace.dropped.items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


def _changed(ask: Ask, rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows after the operations that were asked for, and a note on each."""
    notes = []
    for text in ask.operations or ():
        rows, note = apply_operation(rows, text, ask.seed)
        notes.append(note)
        if not rows:
            raise ConfigError(f"operation {text!r} leaves no request; ask for less")
    return rows, notes


def _from_family(ask: Ask) -> Workload:
    name = ask.synthetic or DEFAULT_FAMILY
    rows = family(name, ask.seed, ask.duration_s, ask.rate_per_s)
    rate_per_s = FAMILIES[name].rate_per_s if ask.rate_per_s is None else ask.rate_per_s
    config = {"synthetic": name, "rate_per_s": rate_per_s, "duration_s": ask.duration_s}
    return Workload(rows, FAMILIES[name].summary, (), config)


def _cut(ask: Ask, whole: Workload) -> Workload:
    """Return the part that was asked for, at the speed that was asked for."""
    factor = ask.speed_up_factor
    fast = speed_up(whole.rows, factor)
    notes = list(whole.notes)
    from_s, to_s, burst = ask.from_s, ask.to_s, ask.burst
    if burst is None or from_s is not None or to_s is not None:
        from_s = whole.from_s if from_s is None else from_s
        to_s = inf if to_s is None else to_s
        rows = window(fast, from_s / factor, to_s / factor)
    else:
        start_s, end_s = onset(fast, burst)
        from_s, to_s = start_s * factor, end_s * factor
        rows, cut = _shortened(window(fast, start_s, end_s), burst.output_tokens_max)
        part = "trace" if ask.traces else "workload"
        notes.append(f"around its largest burst: {from_s:.1f} s to {to_s:.1f} s of the {part}")
        if cut:
            notes.append(f"{cut} longer outputs cut to {burst.output_tokens_max} tokens")
    if not rows:
        end_s = whole.rows[-1].arrival_s if whole.rows else 0.0
        raise ConfigError(
            f"{whole.title}: no request arrives from {from_s:g} s to {to_s:g} s; "
            f"the last one comes at {end_s:g} s"
        )
    rows, did = _changed(ask, rows)
    notes += did
    sped = f", {factor:g} times as fast" if factor != 1 else ""
    config: dict[str, Any] = {
        "from_s": from_s,
        "to_s": None if to_s == inf else to_s,
        "speed_up": factor,
    }
    if ask.operations:
        config["operations"] = list(ask.operations)
    title = f"{whole.title}{sped}: {_totals(rows)}"
    return Workload(rows, title, tuple(notes), {**whole.config, **config})


def onset(rows: Sequence[Row], burst: BurstCut) -> tuple[float, float]:
    """Return (from_s, to_s) around the largest burst, cut where the work gets too much.

    Without the cut, a burst of several times the cluster's capacity would take minutes to drain.
    """
    start_s, end_s = largest_burst(rows, burst.window_s)
    end_s += burst.tail_s
    start_s = max(0.0, start_s - burst.lead_s)
    prompt_tokens = 0
    for row in rows:
        if row.arrival_s < start_s:
            continue
        prompt_tokens += row.prompt_tokens
        if prompt_tokens > burst.prompt_tokens_max:
            return start_s, min(row.arrival_s, end_s)
    return start_s, end_s


def _shortened(rows: Sequence[Row], output_tokens_max: int) -> tuple[list[Row], int]:
    """Return the rows with outputs of at most `output_tokens_max`, and how many were longer."""
    cut = sum(row.output_tokens > output_tokens_max for row in rows)
    return [
        row._replace(output_tokens=min(row.output_tokens, output_tokens_max)) for row in rows
    ], cut


def _totals(rows: Sequence[Row]) -> str:
    prompt_tokens = sum(row.prompt_tokens for row in rows)
    output_tokens = sum(row.output_tokens for row in rows)
    return (
        f"{len(rows):,} requests in {rows[-1].arrival_s:.0f} s, "
        f"{prompt_tokens:,} prompt and {output_tokens:,} output tokens"
    )
