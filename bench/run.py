"""Runs the benchmarks, prints their figures beside the targets, writes build/bench.json.

    make bench                                  everything, under four minutes
    python bench/run.py --quick                 the same figures from fewer repeats, under one
    python bench/run.py --only core --only sim  only these groups

A figure that misses its target is marked and changes nothing else: timings are for people to judge.
The exit code is 1 when a group could not be measured at all.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from figures import Effort, Figure, figure, this_machine, yardstick_us
from mocks import BUILD, BenchError

GROUPS = ("core", "router", "sim")
RESULTS = BUILD.parent / "bench.json"
NAME_WIDTH = 32
VERDICTS = {None: "", True: "met", False: "MISSED"}


def main() -> int:
    """Run the groups asked for and return the exit code."""
    arguments = _arguments()
    head = this_machine().lines()
    print(*head, "", sep="\n", flush=True)
    effort = Effort(arguments.quick, arguments.realtime)
    figures: list[Figure] = []
    failures, yardstick = [], yardstick_us()
    for group in arguments.only or GROUPS:
        print(f"{group}: {_headline(group)}", flush=True)
        _print_header()
        try:
            for one in importlib.import_module(f"bench_{group}").run(effort):
                figures.append(one)
                _print_row(one)
        except BenchError as error:
            failures.append(f"{group}: {error}")
        yardstick += yardstick_us()
        print()
    note = "a fixed piece of Python, before, between and after: how steady this machine was"
    figures.append(figure("yardstick", yardstick, "us", note=note))
    _print_row(figures[-1])
    _write(figures, arguments.out)
    print(f"\n{len(figures)} figures in {arguments.out}", flush=True)
    for failure in failures:
        print(f"NOT MEASURED  {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Spillway on this machine.")
    parser.add_argument("--only", action="append", choices=GROUPS, help="a group; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, wider spread")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run router, mocks and load at real-time priority where latency is measured; "
        "on a busy machine only that shows the router's own share (needs root)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: build/bench.json")
    return parser.parse_args()


def _headline(group: str) -> str:
    doc = importlib.import_module(f"bench_{group}").__doc__ or ""
    return doc.partition("\n")[0]


def _print_header() -> None:
    columns = f"{'median':>10} {'low':>10} {'high':>10}  {'unit':<4} {'target':>9}"
    print(f"  {'':{NAME_WIDTH}}  {columns}", flush=True)


def _print_row(one: Figure) -> None:
    bound = ">=" if one.at_least else "<="
    target = "" if one.target is None else f"{bound} {one.target:,g}"
    values = f"{_short(one.value):>10} {_short(one.low):>10} {_short(one.high):>10}"
    verdict = f"{target:>9} {VERDICTS[one.met]:<6}"
    print(f"  {one.name:{NAME_WIDTH}}  {values}  {one.unit:<4} {verdict}  {one.note}", flush=True)


def _short(value: float) -> str:
    """Return a figure with about four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _write(figures: list[Figure], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = "; ".join(this_machine().lines())
    rows = [one._asdict() | {"met": one.met, "machine": machine} for one in figures]
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
