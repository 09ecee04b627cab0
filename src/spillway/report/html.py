"""One HTML file with everything about a comparison: what was run, figures, plots, an explanation.

It needs nothing else: no network, no scripts, no fonts; it can be mailed or kept for years. Numbers
come from the same cells as the terminal's table.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from spillway.core.errors import ConfigError
from spillway.report import plots
from spillway.report.explain import Explanation, explain
from spillway.report.grid import html as table
from spillway.report.plots import Plot, Series, Shown, inline_svg
from spillway.report.tables import COLUMNS, comparison, percent, remarks, seconds
from spillway.wire.decisions import DecisionRecord
from spillway.wire.results import Results, RunResult

BASELINE = "least-loaded"
_STYLE = Path(__file__).with_name("page.css")


class Section(NamedTuple):
    """One figure of the page and what it shows."""

    name: str
    title: str
    caption: str
    plot: Plot


SECTIONS = (
    Section(
        "over-time",
        "Every request, as it arrived",
        "The load, each request's time to first token by policy (grey: prefilled in the prefill "
        "pool; in colour: deflected), and the share that was deflected. All panels share the time "
        "axis; the TTFT axes are the same for all policies.",
        plots.over_time,
    ),
    Section(
        "ttft",
        "Time to first token",
        "Share of all requests that had their first token within a time; further left is better. "
        "A curve that ends below 100 % had requests without a token.",
        plots.ttft_cdf,
    ),
    Section(
        "gaps",
        "Gaps between tokens",
        "Share of all token gaps at least so long; further left and lower is better. Deflected "
        "prompts slow down the streams beside them; a good policy keeps the curve left of the "
        "target.",
        plots.gap_tail,
    ),
    Section(
        "parts",
        "Where the time of a slow first token went",
        "Means over the requests between the 93rd and 97th percentile of TTFT.",
        plots.ttft_parts,
    ),
)

PARTS = (
    ("queue", "Until the prompt's first chunk ran."),
    ("execute", "The prompt's own prefill."),
    ("transfer", "Its KV to the decode node, the link's queue included; none when deflected."),
    ("admission", "Further wait until the decode node took it in."),
    ("first step", "The decode step that gave the first token."),
)


def write_html(
    path: str | Path,
    results: Results,
    series: Sequence[Series],
    explanation: DecisionRecord | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write the page.

    series: the records and gaps behind each of `results.runs`, in the same order.
    explanation: one decision to explain, at best a deflection; its request is looked up in the
        series of its policy, to say what then happened.
    notes: sentences about the workload.   warnings: what casts doubt on the figures, such as a late
        load client; requests that did not finish are added.
    Raises ConfigError when the file cannot be written or matplotlib is not installed.
    """
    text = page(results, series, explanation, notes, warnings)
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the report: {error.strerror}") from None


def page(
    results: Results,
    series: Sequence[Series],
    explanation: DecisionRecord | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> str:
    """Return what `write_html` writes. The same input gives the same text."""
    shown = Shown(series, results.runs)
    doubts = [*remarks(results.runs), *warnings]
    title = " · ".join(["Spillway", *(run.policy for run in results.runs)])
    parts = [
        f"<h1>{escape(_heading(results.runs))}</h1>",
        f'<p class="lead">{escape(_lead(results))}</p>',
        *(f"<p>{escape(note)}</p>" for note in notes),
        warning(doubts),
        bullets("findings", findings(results.runs)),
        "<h2>Figures</h2>",
        f'<div class="scroll">{table(comparison(results.runs))}</div>',
        '<p class="small">The best of each column stands out. Definitions are at the end.</p>',
        *(_figure(section, shown) for section in SECTIONS if _drawable(section, shown)),
        _explained(explanation, series),
        _definitions(),
        _what_was_run(results),
        f"<footer>Made by spillway {escape(results.spillway_version)}. "
        "This file is complete: it loads nothing.</footer>",
    ]
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Return a complete HTML file of these pieces of its body; empty ones are left out."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>\n"
        f"</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def findings(runs: Sequence[RunResult]) -> list[str]:
    """Return one sentence per run that compares it with the baseline: least-loaded, or the first.

    Good and bad alike: the sentence states both sides and judges neither.
    """
    finished = [run for run in runs if run.requests.finished]
    if len(finished) < 2:
        return []
    base = next((run for run in finished if run.policy == BASELINE), finished[0])
    if base.ttft_s.p95 <= 0:
        return []
    of_base = f"{base.policy}'s {seconds(base.ttft_s.p95)} s"
    return [
        f"{run.policy}: p95 TTFT {seconds(run.ttft_s.p95)} s, "
        f"{run.ttft_s.p95 / base.ttft_s.p95:.2f} times {of_base}; "
        f"late tokens {percent(run.late_tokens_frac)} % against "
        f"{percent(base.late_tokens_frac)} %; {percent(run.deflected_frac)} % deflected."
        for run in finished
        if run is not base
    ]


def _heading(runs: Sequence[RunResult]) -> str:
    match len(runs):
        case 0:
            return "Nothing was run"
        case 1:
            return f"{runs[0].policy}: one run"
        case count:
            return f"{count} policies, the same requests"


def _lead(results: Results) -> str:
    arrived = sorted({run.requests.arrived for run in results.runs})
    requests = " or ".join(f"{count:,}" for count in arrived) or "no"
    return f"{requests} requests per run, seed {results.seed}, spillway {results.spillway_version}"


def bullets(name: str, items: Sequence[str]) -> str:
    """Return a list of sentences, nothing for none."""
    lines = "".join(f"<li>{escape(item).replace(' %', '&nbsp;%')}</li>" for item in items)
    return f'<ul class="{name}">{lines}</ul>' if items else ""


def warning(doubts: Sequence[str]) -> str:
    """Return the box of what casts doubt on the figures, nothing when nothing does."""
    if not doubts:
        return ""
    return (
        '<div class="warning" role="alert"><strong>Read these figures with care.</strong>'
        f"{bullets('doubts', doubts)}</div>"
    )


def _drawable(section: Section, shown: Shown) -> bool:
    """A figure without a point says nothing."""
    if section.plot is plots.ttft_parts:
        return any(run.ttft_parts_p95_s for run in shown.runs)
    if section.plot is plots.gap_tail:
        return any(one.gaps.count for one in shown.series)
    return any(record.ttft_s is not None for one in shown.series for record in one.records)


def _figure(section: Section, shown: Shown) -> str:
    return figure(section.title, section.caption, inline_svg(section.plot, shown, section.name))


def figure(title: str, caption: str, svg: str) -> str:
    """Return a figure with its title and what it shows."""
    label = f'<svg role="img" aria-label="{escape(title)}"'
    return (
        f"<figure>\n<h3>{escape(title)}</h3>\n"
        f"<figcaption>{escape(caption)}</figcaption>\n"
        f"{svg.replace('<svg', label, 1)}\n</figure>"
    )


def _explained(record: DecisionRecord | None, series: Sequence[Series]) -> str:
    if record is None:
        return ""
    happened = next(
        (
            one
            for run in series
            if not record.policy or run.policy == record.policy
            for one in run.records
            if one.request_id == record.request.request_id
        ),
        None,
    )
    told: Explanation = explain(record, happened)
    left_out = f"{told.left_out} more ways are not shown." if told.left_out else ""
    sentences = [told.why, told.outcome, left_out]
    return "\n".join(
        [
            "<h2>One decision, explained</h2>",
            f"<p><strong>{escape(told.headline)}.</strong> {escape(told.request)}.</p>",
            f'<div class="scroll">{table(told.candidates)}</div>',
            *(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence),
            '<p class="small">Times are predictions in seconds, made when the request arrived.</p>',
        ]
    )


def _definitions() -> str:
    words = [(column.name, column.means) for column in COLUMNS]
    return f"<h2>What the words mean</h2>\n{terms('words', [*words, *PARTS])}"


def _what_was_run(results: Results) -> str:
    options = [(str(key), _value(value)) for key, value in results.config.items()]
    pairs = [("seed", str(results.seed)), ("version", results.spillway_version), *options]
    walls = [(f"{run.policy}, wall clock", f"{run.wall_s:.1f} s") for run in results.runs]
    return f"<h2>What was run</h2>\n{terms('run', list(dict([*pairs, *walls]).items()))}"


def terms(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a list of words with what they mean, or of settings with their values."""
    rows = "\n".join(f"<dt>{escape(term)}</dt><dd>{escape(said)}</dd>" for term, said in pairs)
    return f'<dl class="{name}">\n{rows}\n</dl>'


def _value(value: Any) -> str:
    if value is None or value in ({}, []):
        return "none"
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
