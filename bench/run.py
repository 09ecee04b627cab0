"""Runs the benchmarks, prints what they yield, and writes one result file for each group.

    make bench-router                          routers, ours beside its peers
    make bench-sim                             simulators, the same
    make bench-core                            decisions, ledger, dispatcher, trace readers
    make bench-workers                         two worker processes beside one
    make bench-judges                          what outside load generators see at the router
    python bench/run.py --only core --quick    one group, from few repeats

A missed target or a lost comparison is marked and changes nothing else: timings are for people to
judge. The exit code is 1 when something of ours could not be measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from comparison import OURS, Absent, Comparison, Spread
from figures import Effort, Figure, figure, this_machine, yardstick_us
from mocks import BUILD, BenchError

GROUPS = ("core", "sim", "router", "workers")
ALL = (*GROUPS, "judges")
RESULTS = BUILD.parent
SCHEMA = 1
NAME_WIDTH = 32
VERDICTS = {None: "", True: "met", False: "MISSED"}
Yielded = Figure | Comparison | Absent


def main() -> int:
    """Run the groups asked for and return the exit code."""
    arguments = _arguments()
    effort = Effort(arguments.quick, arguments.realtime)
    print(*this_machine().lines(), "", sep="\n", flush=True)
    failures = []
    for group in arguments.only or GROUPS:
        module = importlib.import_module(f"bench_{group}")
        print(f"{group}: {(module.__doc__ or '').partition(chr(10))[0]}", flush=True)
        begun_s, before = time.monotonic(), this_machine()
        yielded: list[Yielded] = []
        yardstick = yardstick_us()
        try:
            for one in module.run(effort):
                yielded.append(one)
                print(*_lines(one), sep="\n", flush=True)
        except BenchError as error:  # what came before it is kept
            yielded.append(Absent("the rest of this group", str(error), ours=True))
            print(*_lines(yielded[-1]), sep="\n", flush=True)
        failures += [
            f"{group}: {one.name}" for one in yielded if isinstance(one, Absent) and one.ours
        ]
        note = "a fixed piece of Python, before and after: how steady this machine was"
        yielded.append(figure("yardstick", yardstick + yardstick_us(), "us", note=note))
        print(*_lines(yielded[-1]), sep="\n")
        path = arguments.out / f"bench-{group}.json"
        wall_s = time.monotonic() - begun_s
        _write(path, group, effort, yielded, wall_s, before.load_average)
        print(f"\n{len(yielded)} rows in {path}, {wall_s:.0f} s\n", flush=True)
    for failure in failures:
        print(f"NOT MEASURED  {failure}", file=sys.stderr)
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Spillway on this machine.")
    parser.add_argument("--only", action="append", choices=ALL, help="a group; may be repeated")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, wider spread")
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="run routers, mocks and load at real-time priority where latency is measured; "
        "on a busy machine only that shows the router's own share (needs root)",
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder; default: build")
    return parser.parse_args()


# --- printing --------------------------------------------------------------------------------


def _lines(one: Yielded) -> list[str]:
    match one:
        case Figure():
            return [_figure_line(one)]
        case Absent():
            return [f"  NOT MEASURED  {one.name}: {one.reason}"]
        case Comparison():
            title = f"  {one.setting}; {one.load}; {one.quantity} ({one.unit})"
            return [title, *(_program_line(one, name) for name in one.samples)]


def _figure_line(one: Figure) -> str:
    bound = ">=" if one.at_least else "<="
    target = "" if one.target is None else f"{bound} {one.target:,g}"
    values = f"{short(one.value):>10} {short(one.low):>10} {short(one.high):>10}"
    verdict = f"{target:>9} {VERDICTS[one.met]:<6}"
    return f"  {one.name:{NAME_WIDTH}}  {values}  {one.unit:<4} {verdict}  {one.note}"


def _program_line(one: Comparison, name: str) -> str:
    values, ratio = one.spread(name), one.ratios().get(name)
    line = f"    {name:14} {_three(values)}"
    if ratio is None or name == OURS:
        return line
    target = f", MISSED {one.targets[name]:g}" if one.missed(name) else ""
    return f"{line}   ours/this {_three(ratio)} {one.verdict(name)}{target}"


def _three(values: Spread | None) -> str:
    if values is None:
        return f"{'-':>10}"
    return f"{short(values.median):>10} [{short(values.low)} .. {short(values.high)}]"


def short(value: float) -> str:
    """Return a figure with about three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# --- the file --------------------------------------------------------------------------------


def _write(
    path: Path, group: str, effort: Effort, rows: list[Yielded], wall_s: float, load_before: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = this_machine()
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "group": group,
        "command": f"make bench-{group}" + (" QUICK=1" if effort.quick else ""),
        "quick": effort.quick,
        "realtime": effort.realtime,
        "wall_s": round(wall_s, 1),
        "machine": machine._asdict() | {"load_average_before": load_before},
        "versions": importlib.import_module(f"bench_{group}").versions(),
        "comparisons": [one.as_json() for one in rows if isinstance(one, Comparison)],
        "figures": [one._asdict() | {"met": one.met} for one in rows if isinstance(one, Figure)],
        "absent": [one._asdict() for one in rows if isinstance(one, Absent)],
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
