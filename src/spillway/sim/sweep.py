"""Runs random scenarios by seed with every invariant on, and stops at the first that fails.

python -m spillway.sim.sweep --count 50 [--first 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from spillway.sim.run import RunOutput, run
from spillway.sim.scenario import swarm


def sweep_one(seed: int) -> RunOutput:
    """Run the random scenario of `seed` with all checks. Raises what the run raises."""
    scenario, rows = swarm(seed)
    return run(scenario, rows, seed, checks=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `--count` seeds from `--first` on; print the failing seed and its scenario, if any."""
    parser = argparse.ArgumentParser(prog="python -m spillway.sim.sweep", description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="how many seeds (default 50)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    options = parser.parse_args(arguments)
    requests = events = 0
    for seed in range(options.first, options.first + options.count):
        try:
            output = sweep_one(seed)
        except BaseException:
            again = f"python -m spillway.sim.sweep --first {seed} --count 1"
            print(f"seed {seed} fails; again: {again}\n{swarm(seed)[0]}", file=sys.stderr)
            raise
        requests += len(output.records)
        events += output.work.events
    print(f"{options.count} scenarios, {requests} requests, {events} events: every invariant held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
