"""What a policy that only watched would have done, against what did happen.

A prediction of the shadow is for its one request moved, and every other left where it was: the
right question for one choice, and blind to what all of them together would have done to the queues.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO

import msgspec

from spillway.core.errors import ConfigError
from spillway.report.explain import place_of
from spillway.report.grid import Cell, Grid, print_grid
from spillway.report.tables import NOTHING, percent, seconds
from spillway.stats import percentile
from spillway.wire.decisions import DecisionRecord

LINE_CHARS = 80
TAIL_FRAC = 0.95
HEAD = (
    *("would have been", "requests", "TTFT\np50 s", "TTFT\np95 s", "in\ntime\n%"),
    *("fore-\ntold\np95 s", "shadow\np50 s", "shadow\np95 s", "shadow\nin\ntime\n%"),
)
CAVEAT = (
    "Each prediction moves one request and leaves all others where they went: neither the crowd "
    "that they would have been on the nodes of the shadow's choice, nor the queues that would have "
    "been shorter for those behind, is in it. spillway simulate compares whole runs."
)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of one kind. None where nothing is known.

    what: `as it was`, or what the shadow would have done with them.
    ttft_*: what happened. foretold_*: predicted for the way that was taken, shadow_*: for the way
    the shadow would have taken. in_time_frac: share within the TTFT target, of those known.
    """

    what: str
    requests: int
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    in_time_frac: float | None = None
    foretold_p95_s: float | None = None
    shadow_p50_s: float | None = None
    shadow_p95_s: float | None = None
    shadow_in_time_frac: float | None = None


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `compare_shadow` found.

    policy, shadow: who routed, and who watched. total: every request; tallies: the same by kind.
    reasons: of the shadow's decisions, with their number.
    forecast_*: what happened over what was foretold for it, on the way that was taken: how far
    predictions can be trusted here; None where it is not known what happened.
    """

    policy: str
    shadow: str
    total: Tally
    tallies: tuple[Tally, ...]
    reasons: dict[str, int]
    forecast_p5_frac: float | None = None
    forecast_p50_frac: float | None = None
    forecast_p95_frac: float | None = None


class _Line(msgspec.Struct):
    """What is needed of a request record, or of a line of the router's log."""

    request_id: str = ""
    ttft_s: float | None = None


class _Pair(NamedTuple):
    """One request: seconds to its first token, as it happened and as predicted; its target."""

    what: str
    reason: str
    ttft_s: float | None
    foretold_s: float | None
    shadow_s: float | None
    target_s: float


def compare_shadow(
    records: Iterable[DecisionRecord], happened: Mapping[str, float]
) -> ShadowReport | None:
    """Return the comparison over the last decision of each request; None if no shadow looked on.

    happened: TTFT in seconds by request id, for as many of them as are known.
    """
    last = {record.request.request_id: record for record in records if record.shadow is not None}
    if not last:
        return None
    pairs = [_pair(record, happened.get(name)) for name, record in last.items()]
    kinds: dict[str, list[_Pair]] = {}
    reasons: dict[str, int] = {}
    for pair in pairs:
        kinds.setdefault(pair.what, []).append(pair)
        reasons[pair.reason] = reasons.get(pair.reason, 0) + 1
    some = next(iter(last.values()))
    assert some.shadow is not None
    ratios = sorted(p.ttft_s / p.foretold_s for p in pairs if p.ttft_s and p.foretold_s)
    low, middle, high = (_at(ratios, frac) for frac in (0.05, 0.5, 0.95))
    return ShadowReport(
        policy=some.policy,
        shadow=some.shadow.policy,
        total=_tally("all", pairs),
        tallies=tuple(
            _tally(what, kind) for what, kind in sorted(kinds.items(), key=lambda one: -len(one[1]))
        ),
        reasons=dict(sorted(reasons.items(), key=lambda one: -one[1])),
        forecast_p5_frac=low,
        forecast_p50_frac=middle,
        forecast_p95_frac=high,
    )


def read_happened(path: Path) -> dict[str, float]:
    """Return the TTFT, in seconds, of every request in a file that got a first token.

    The file is the router's log (`log_path`) or one of request records (`--records`). Raises
    ConfigError, naming the line, on anything else.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--happened {path}: cannot be read: {error.strerror}") from None
    decoder = msgspec.json.Decoder(_Line)
    found: dict[str, float] = {}
    for number, text in enumerate(lines, start=1):
        try:
            line = decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"--happened {path}, line {number}: {error}") from None
        if line.request_id and line.ttft_s is not None:
            found[line.request_id] = line.ttft_s
    if not found:
        raise ConfigError(
            f"--happened {path}: no request with a first token in it; give the file of the "
            "router's log_path, or one of request records (--records)"
        )
    return found


def print_shadow(report: ShadowReport, stream: TextIO | None = None) -> None:
    """Print the comparison: a table, and what it says."""
    stream = stream or sys.stdout
    print(f"In the shadow of {report.policy}: {report.shadow}\n", file=stream)
    print_grid(shadow_grid(report), stream)
    print("", *(textwrap.fill(line, LINE_CHARS) for line in said(report)), sep="\n", file=stream)


def shadow_grid(report: ShadowReport) -> Grid:
    """Return one row per kind of request, and one of all."""
    return Grid(HEAD, tuple(_row(one) for one in (*report.tallies, report.total)))


def said(report: ShadowReport) -> list[str]:
    """Return the sentences under the table."""
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.reasons.items())
    lines = [f"Reasons of {report.shadow}: {reasons}."]
    middle, low, high = report.forecast_p50_frac, report.forecast_p5_frac, report.forecast_p95_frac
    if middle is not None and low is not None and high is not None:
        lines.append(
            f"On the way that was taken, first tokens came after {middle:.2f} times what was "
            f"foretold (half of them sooner; 90 % between {low:.2f} and {high:.2f} times): read "
            "the shadow's predictions with that in mind."
        )
    else:
        lines.append(
            "What happened is not known here, only what was foretold: give --happened FILE."
        )
    return [*lines, CAVEAT]


def _pair(record: DecisionRecord, ttft_s: float | None) -> _Pair:
    assert record.shadow is not None
    done, would = record.decision, record.shadow.decision
    waited_s = max(0.0, record.decided_at_s - record.request.arrival_s)
    foretold, other = done.estimate, would.estimate
    return _Pair(
        what=_what(record),
        reason=would.reason,
        ttft_s=ttft_s,
        foretold_s=waited_s + foretold.total_s if foretold and foretold.total_s else None,
        shadow_s=waited_s + other.total_s if other and other.total_s else None,
        target_s=record.request.slo_ttft_s,
    )


def _what(record: DecisionRecord) -> str:
    assert record.shadow is not None
    done, would = record.decision, record.shadow.decision
    if would.route == done.route:
        same = place_of(would) == place_of(done)
        return "as it was" if same else f"{would.route}, another node"
    return f"{would.route}, not {done.route}"


def _tally(what: str, pairs: Sequence[_Pair]) -> Tally:
    ttfts_s = sorted(p.ttft_s for p in pairs if p.ttft_s is not None)
    foretold_s = sorted(p.foretold_s for p in pairs if p.foretold_s is not None)
    shadows_s = sorted(p.shadow_s for p in pairs if p.shadow_s is not None)
    return Tally(
        what=what,
        requests=len(pairs),
        ttft_p50_s=_at(ttfts_s, 0.5),
        ttft_p95_s=_at(ttfts_s, TAIL_FRAC),
        in_time_frac=_share([p.ttft_s <= p.target_s for p in pairs if p.ttft_s is not None]),
        foretold_p95_s=_at(foretold_s, TAIL_FRAC),
        shadow_p50_s=_at(shadows_s, 0.5),
        shadow_p95_s=_at(shadows_s, TAIL_FRAC),
        shadow_in_time_frac=_share(
            [p.shadow_s <= p.target_s for p in pairs if p.shadow_s is not None]
        ),
    )


def _at(ascending: Sequence[float], frac: float) -> float | None:
    return percentile(ascending, frac) if ascending else None


def _share(held: Sequence[bool]) -> float | None:
    return sum(held) / len(held) if held else None


def _row(one: Tally) -> tuple[Cell, ...]:
    texts = (
        one.what,
        f"{one.requests:,}",
        *(_or_nothing(value, seconds) for value in (one.ttft_p50_s, one.ttft_p95_s)),
        _or_nothing(one.in_time_frac, percent),
        *(
            _or_nothing(value, seconds)
            for value in (one.foretold_p95_s, one.shadow_p50_s, one.shadow_p95_s)
        ),
        _or_nothing(one.shadow_in_time_frac, percent),
    )
    return tuple(map(Cell, texts))


def _or_nothing(value: float | None, text: Callable[[float], str]) -> str:
    return NOTHING if value is None else text(value)
