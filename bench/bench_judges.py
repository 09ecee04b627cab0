"""What outside load generators measure at the router, beside what its own /metrics say.

The router stands before fake engines, which are simulated nodes at wall-clock pace. Nothing here is
about speed: two observers of the same requests have to agree.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from comparison import OURS, Absent, Comparison
from figures import Effort, Figure
from judges import FOLDER, JUDGES, Judge, Load, Verdict, variables
from mocks import BenchError, stopped_at_end
from peers import pinned_version
from process import run_to_end
from rig import free_port, get, pause

TOLERANCE_FRAC = 0.05
START_S_MAX = 60.0
NODES = {"p0": "prefill", "p1": "prefill", "d0": "decode", "d1": "decode"}
OWN = "spillway load"


def run(effort: Effort) -> Iterator[Figure | Comparison | Absent]:
    """Yield what each judge and the router say about the same requests. Raises BenchError."""
    with cluster() as port:
        url = f"http://127.0.0.1:{port}"
        load = Load(url, model(port), 2.0, 20 if effort.quick else 80, 2048, 48)
        yield from _compared(OWN, port, load, partial(_own_load, load))
        for name, build in JUDGES.items():
            try:
                judge = build()
                yield from _compared(name, port, load, partial(_judged, judge, load))
            except BenchError as error:
                yield Absent(name, str(error))


def versions() -> dict[str, str]:
    """Return the judges, by name."""
    return {name: pinned_version(name) for name in JUDGES}


def _compared(
    name: str, port: int, load: Load, measure: Callable[[], Verdict]
) -> Iterator[Comparison]:
    """Let one judge send its load, and set what it says against the router's metrics."""
    before = metrics(port)
    said = measure()
    after = metrics(port)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    setting = f"{load.rate_per_s:g} streams/s of {load.output_tokens} tokens"
    answered, gaps = grown["spillway_ttft_seconds_count"], load.output_tokens - 1
    if not answered:
        raise BenchError("the router's metrics saw no request answered")
    quantities = {
        "requests": ("", answered, float(said.completed)),
        "mean TTFT": (
            "ms",
            1e3 * grown["spillway_ttft_seconds_sum"] / answered,
            1e3 * said.ttft_s,
        ),
        "mean time between tokens": (  # not of gaps: several tokens may come in one read
            "ms",
            1e3 * grown["spillway_stream_gap_seconds_sum"] / answered / gaps,
            1e3 * said.stream_s / gaps,
        ),
    }
    for quantity, (unit, ours, theirs) in quantities.items():
        samples = {OURS: [ours], name: [theirs]}
        targets = {name: TOLERANCE_FRAC}
        load_name = f"{load.prompt_tokens} prompt tokens"
        yield Comparison(setting, load_name, quantity, unit, samples, "equal", targets)


def _judged(judge: Judge, load: Load) -> Verdict:
    folder = FOLDER / judge.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run_to_end(judge.command(load, folder), environment=variables(judge), s_max=300)
    return judge.read(folder)


def _own_load(load: Load) -> Verdict:
    """Our own load client, with a trace of the same lengths at the same rate."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    trace, records = FOLDER / "own.csv", FOLDER / "own.jsonl"
    rows = (
        f"{at / load.rate_per_s:.6f},{load.prompt_tokens},{load.output_tokens}\n"
        for at in range(load.requests)
    )
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(rows), encoding="utf-8")
    command = [sys.executable, "-m", "spillway", "load", "--url", load.url]
    run_to_end([*command, "--trace", trace, "--records", records])
    sent = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    done = [one for one in sent if one["outcome"] == "finished"]
    return Verdict(
        len(done),
        len(sent) - len(done),
        sum(one["ttft_s"] for one in done) / len(done),
        sum(one["gap_mean_s"] * one["gaps"] for one in done) / len(done),
    )


# --- the router ------------------------------------------------------------------------------


@contextmanager
def cluster() -> Iterator[int]:
    """Run simulated engines and the router, which times every stream here; yields its port."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        nodes: dict[str, list[dict[str, str]]] = {"prefill": [], "decode": []}
        started = []
        for name, role in NODES.items():
            port = free_port()
            engine = ["engine", "--role", role, "--name", name, "--port", str(port)]
            started.append(stack.enter_context(_command(name, engine)))
            nodes[role].append({"url": f"http://127.0.0.1:{port}", "name": name})
        port = free_port()
        # Usually one stream in 16 is timed: too few to set against a judge that times all.
        settings = {"port": port, "gap_sample_every": 1}
        configuration = FOLDER / "router.yaml"
        text = json.dumps({"router": settings, "nodes": nodes})  # JSON is YAML
        configuration.write_text(text, encoding="utf-8")
        serve = ["serve", "--config", str(configuration)]
        started.append(stack.enter_context(_command("router", serve)))
        give_up_s = time.monotonic() + START_S_MAX
        while not _healthy(port):
            over = any(process.poll() is not None for process in started)
            if over or time.monotonic() > give_up_s:
                raise BenchError(f"the router did not start: {_tail(FOLDER / 'router.log')}")
            pause(0.1)
        yield port


@contextmanager
def _command(name: str, arguments: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a spillway command for the length of a block, its output in a log of that name."""
    with (FOLDER / f"{name}.log").open("w") as log:
        words = [sys.executable, "-m", "spillway", *arguments]
        process = subprocess.Popen(words, stdout=log, stderr=log, text=True)
        with stopped_at_end(process):
            yield process


def _healthy(port: int) -> bool:
    """Say whether the router can use every engine."""
    try:
        status, body = get(port, "/health")
    except OSError:
        return False
    if status != 200:
        return False
    usable = json.loads(body)
    return len(NODES) == usable["prefill_nodes_usable"] + usable["decode_nodes_deflectable"]


def model(port: int) -> str:
    """Return the name of the model that the router serves."""
    name: str = json.loads(get(port, "/v1/models")[1])["data"][0]["id"]
    return name


def metrics(port: int) -> dict[str, float]:
    """Return every sample of /metrics, summed over its labels; buckets are left out."""
    sums: dict[str, float] = {}
    for line in get(port, "/metrics")[1].decode().splitlines():
        if line and line[0] != "#" and "_bucket{" not in line:
            sample, _, value = line.rpartition(" ")
            name = sample.partition("{")[0]
            sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _tail(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()[-300:]
