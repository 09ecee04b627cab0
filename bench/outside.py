"""One outside load generator at `spillway serve` over fake engines, in small: all is answered.

    make judge-env      # installs it, at most two minutes a try
    make test-judge     # sends a few dozen streams through the router: under a minute

Nothing is compared or timed here; `make bench-judges` does that. What counts is what the tool
itself says: that each request was completed, and that it met no error.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Mapping

from bench_judges import cluster, metrics, model
from judges import FOLDER, Judge, Load, Verdict, aiperf, tokenizer, variables
from mocks import BenchError
from process import run_to_end

RATE_PER_S, REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 5.0, 40, 512, 24
INSTALL_S_MAX = 120.0
RUN_S_MAX = 180.0  # a third of a minute on an idle machine


def installed() -> Judge:
    """Return the load generator, installed now if it is not yet. Raises BenchError."""
    tokenizer(install_s_max=INSTALL_S_MAX)
    return aiperf(install_s_max=INSTALL_S_MAX)


def run() -> list[str]:
    """Return what was wrong with the run, in words; empty when nothing was. Raises BenchError."""
    judge = installed()
    with cluster() as port:
        url = f"http://127.0.0.1:{port}"
        load = Load(url, model(port), RATE_PER_S, REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS)
        folder = FOLDER / "outside"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = judge.command(load, folder)
        run_to_end(command, environment=variables(judge), s_max=RUN_S_MAX)
        verdict = judge.read(folder)
        print(
            f"{judge.name} {judge.version}: {verdict.completed} of {load.requests} requests"
            f" completed, {verdict.errors} errors"
        )
        return faults(load, verdict, metrics(port))


def faults(load: Load, verdict: Verdict, seen: Mapping[str, float]) -> list[str]:
    """Return what does not agree with every request having been answered whole.

    seen: the samples of the router's /metrics, summed over their labels.
    """
    wrong = []
    if verdict.completed != load.requests:
        wrong.append(f"{verdict.completed} requests completed of {load.requests} sent")
    if verdict.errors:
        wrong.append(f"{verdict.errors} errors by the load generator's own count")
    if refused := seen.get("spillway_bad_requests_total", 0.0):
        wrong.append(f"the router refused {refused:g} requests unseen by any engine")
    if (answered := seen.get("spillway_ttft_seconds_count", 0.0)) < verdict.completed:
        wrong.append(f"the router counts {answered:g} answers, fewer than were completed")
    return wrong


def main() -> int:
    """Return 0, or 1 with the reason on standard error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--install", action="store_true", help="install the tool, and no more")
    action: Callable[[], object] = installed if parser.parse_args().install else run
    try:
        found = action()
    except BenchError as error:
        found = [str(error)]
    if isinstance(found, list) and found:
        print("\n".join(f"spillway: error: {fault}" for fault in found), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
