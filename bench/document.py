"""Writes docs/benchmarks.md and its figures from the result files of the benchmarks.

    python bench/document.py        from build/bench-*.json, as `make bench` does at its end

Nothing in the page is typed by hand but the words of document_words.txt: every number comes from a
result file, and so do the lists of what was lost, missed and not measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from chart import ratios_figure
from comparison import DIRECT, FLOOR, OURS
from peers import CHECKOUT
from run import ALL, GROUPS, short

WORDS = Path(__file__).resolve().parent / "document_words.txt"
PAGE = CHECKOUT / "docs" / "benchmarks.md"
FIGURES = CHECKOUT / "docs" / "figures"
ABSOLUTE = "absolute, without a router"
Result = dict[str, Any]


def main() -> int:
    """Write the page; the exit code is 2 when a result file is missing or from a quick run."""
    arguments = _arguments()
    results, missing = {}, []
    for group in ALL:
        path = arguments.results / f"bench-{group}.json"
        if path.exists():
            results[group] = json.loads(path.read_text(encoding="utf-8"))
        elif group in GROUPS:
            missing.append(f"{path} (make bench-{group})")
    quick = [group for group, one in results.items() if one["quick"] and not arguments.draft]
    if missing and not arguments.draft:
        print(f"document.py: error: no result file {', '.join(missing)}", file=sys.stderr)
        return 2
    if quick:
        print(f"document.py: error: from a quick run: {', '.join(quick)}", file=sys.stderr)
        return 2
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.figures.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(page(results), encoding="utf-8")
    if "router" in results:
        rows = [one for one in results["router"]["comparisons"] if one["setting"] == "P/D, pinned"]
        ratios_figure(rows, arguments.figures / "benchmarks-router.svg")
    print(f"written: {arguments.page}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Write docs/benchmarks.md from result files.")
    parser.add_argument("--results", type=Path, default=CHECKOUT / "build", help="their folder")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    parser.add_argument("--draft", action="store_true", help="also from quick or missing results")
    return parser.parse_args()


def page(results: dict[str, Result]) -> str:
    """Return the whole page: the words, with each `<!-- name -->` line replaced by its part."""
    parts = {
        "draft": _draft(results),
        "runs": _runs(results),
        "versions": _versions(results),
        "lost": _lost(results),
        "router": _tables(results, "router"),
        "sim": _tables(results, "sim"),
        "judges": _tables(results, "judges"),
        "workers": _workers(results),
        "figures": _figures({name: one for name, one in results.items() if name != "workers"}),
        "absent": _absent(results),
    }
    lines: list[str] = []
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        name = line.removeprefix("<!-- ").removesuffix(" -->")
        lines += list(parts[name]) if line.startswith("<!-- ") else [line]
    return "\n".join(lines) + "\n"


# --- parts -----------------------------------------------------------------------------------


def _draft(results: dict[str, Result]) -> Iterator[str]:
    """A warning above figures that are not to be quoted."""
    quick = [one["command"] for one in results.values() if one["quick"]]
    missing = [f"make bench-{group}" for group in GROUPS if group not in results]
    if quick or missing:
        yield "> **Draft**, not to be quoted. From few repeats, or not run at all:"
        yield "> " + ", ".join(f"`{command}`" for command in quick + missing) + "."


def _runs(results: dict[str, Result]) -> Iterator[str]:
    yield "| command | machine | load average before, after | took |"
    yield "|---|---|---|---|"
    for one in results.values():
        machine = one["machine"]
        where = f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}"
        loads = f"{machine['load_average_before']}; {machine['load_average']}"
        how = " (real-time priority)" if one["realtime"] else ""
        yield f"| `{one['command']}`{how} | {where} | {loads} | {one['wall_s']:.0f} s |"


def _versions(results: dict[str, Result]) -> Iterator[str]:
    machine = next(iter(results.values()))["machine"]
    yield f"Python {machine['python']}, {machine['libraries']}."
    for group, one in results.items():
        named = ", ".join(f"{name} {version}" for name, version in one["versions"].items())
        if named:
            yield f"Beside ours in `bench-{group}`: {named}."


def _lost(results: dict[str, Result]) -> Iterator[str]:
    """Every cell in which a peer was better in all rounds, or a target was missed."""
    yield "| setting | load | quantity | peer | ours / peer | |"
    yield "|---|---|---|---|---|---|"
    for one in _comparisons(results):
        for peer, ratio in one["ratios"].items():
            if ratio["verdict"] == "lost" or ratio["missed"]:
                target = f"target {one['targets'][peer]:g} missed" if ratio["missed"] else ""
                words = ", ".join(filter(None, [ratio["verdict"], target]))
                where = f"{one['setting']} | {one['load']} | {one['quantity']}"
                yield f"| {where} | {peer} | {_spread(ratio)} | {words} |"
    for name, figure in _all_figures(results):
        if figure["met"] is False:
            sign = ">=" if figure["at_least"] else "<="
            where = f"| `bench-{name}` | `{figure['name']}` | | | {short(figure['value'])} |"
            yield f"{where} target {sign} {figure['target']:g} missed |"


def _tables(results: dict[str, Result], group: str) -> Iterator[str]:
    """One table a setting: a row for each load and quantity, a column for each program."""
    if group not in results:
        yield f"Not run: `make bench-{group}`."
        return
    comparisons = results[group]["comparisons"]
    for setting in dict.fromkeys(one["setting"] for one in comparisons):
        rows = [one for one in comparisons if one["setting"] == setting]
        names = list(dict.fromkeys(name for one in rows for name in one["samples"]))
        if OURS in names:
            names.insert(0, names.pop(names.index(OURS)))
        heads = [ABSOLUTE if name == DIRECT else name for name in names]
        yield f"**{setting}**\n"
        yield "| load | quantity | " + " | ".join(heads) + " |"
        yield "|---|---" + "|---" * len(names) + "|"
        for one in rows:
            cells = " | ".join(_cell(one, name) for name in names)
            unit = f" ({one['unit']})" if one["unit"] else ""
            yield f"| {one['load']} | {one['quantity']}{unit} | {cells} |"
        yield ""


def _cell(one: dict[str, Any], name: str) -> str:
    if name not in one["programs"]:
        return "-"
    text, ratio = _spread(one["programs"][name]), one["ratios"].get(name)
    if ratio is None or name == FLOOR:
        return text
    mark = {"won": "", "lost": " **lost**", "level": " level"}.get(ratio["verdict"], "")
    missed = " **missed**" if ratio["missed"] else ""
    return f"{text}<br>ours/this {_spread(ratio)}{mark}{missed}"


def _workers(results: dict[str, Result]) -> Iterator[str]:
    if "workers" in results:
        yield from _figures({"workers": results["workers"]})
    else:
        yield "Not run: `make bench-workers`."


def _figures(results: dict[str, Result]) -> Iterator[str]:
    """One row a figure; what was counted of a call stands in the row of its time."""
    yield "| figure | median | lowest | highest | unit | target | |"
    yield "|---|---|---|---|---|---|---|"
    counted = {one["name"]: one["value"] for _group, one in _all_figures(results)}
    for _group, one in _all_figures(results):
        name = one["name"]
        if name.endswith("_calls") or (
            name.endswith("_peak") and f"{name.removesuffix('_peak')}_calls" in counted
        ):
            continue
        sign = ">=" if one["at_least"] else "<="
        target = "" if one["target"] is None else f"{sign} {one['target']:g}"
        values = " | ".join(short(one[key]) for key in ("value", "low", "high"))
        notes = ["**missed**"] if one["met"] is False else []
        notes += [one["note"]] if one["note"] else []
        if f"{name}_calls" in counted:
            calls, peak_bytes = counted[f"{name}_calls"], counted[f"{name}_peak"]
            notes.append(f"{short(calls)} calls, {short(peak_bytes)} B at the peak")
        yield f"| `{name}` | {values} | {one['unit']} | {target} | {'; '.join(notes)} |"


def _absent(results: dict[str, Result]) -> Iterator[str]:
    found = [one for result in results.values() for one in result["absent"]]
    if not found:
        yield "In these runs everything was measured."
    for one in found:
        reason = " ".join(str(one["reason"]).split())
        yield f"- {one['name']}: {reason[:300]}"


# --- pieces ----------------------------------------------------------------------------------


def _comparisons(results: dict[str, Result]) -> Iterable[dict[str, Any]]:
    return [one for result in results.values() for one in result["comparisons"]]


def _all_figures(results: dict[str, Result]) -> Iterable[tuple[str, dict[str, Any]]]:
    return [(group, one) for group, result in results.items() for one in result["figures"]]


def _spread(one: dict[str, float]) -> str:
    if one["low"] == one["high"]:
        return short(one["median"])
    return f"{short(one['median'])} ({short(one['low'])} .. {short(one['high'])})"


if __name__ == "__main__":
    sys.exit(main())
