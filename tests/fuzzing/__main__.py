"""`make fuzz`: N inputs for each surface, from a seed. Prints a fault and how to repeat it."""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections import Counter

from fuzzing.surfaces import BATCH, SURFACES, Found, fuzz

PART = 20 * BATCH  # inputs from one line of output to the next


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000, help="inputs per surface")
    parser.add_argument("--first", type=int, default=0, help=f"rounded down to a batch of {BATCH}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--surface", choices=sorted(SURFACES), action="append")
    asked = parser.parse_args()
    for name in asked.surface or SURFACES:
        began_s, ends, done = time.process_time(), Counter[str](), 0
        while done < asked.count:
            part = min(PART, asked.count - done)
            try:
                ends += fuzz(name, asked.seed, asked.first + done, part)
            except Found as error:
                traceback.print_exc()
                again = f"make fuzz SURFACE={name} SEED={asked.seed} FIRST={error.number} N=1"
                print(f"spillway: error: {name}: again with: {again}", file=sys.stderr)
                return 1
            done += part
            cpu_s = round(time.process_time() - began_s)
            figures = {"surface": name, "seed": asked.seed, "inputs": done, "cpu_s": cpu_s}
            print(json.dumps(figures | {"ends": dict(sorted(ends.items()))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
