"""The simulators that are measured: this project's and its peers', each given the same requests.

A simulator is a command over a trace file in its own format. What is compared is the whole process,
from the shell to the result.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from comparison import OURS
from mocks import BUILD, BenchError
from peers import CHECKOUT, environment, pinned_version

from spillway.sim.run import run as simulate
from spillway.sim.scenario import Scenario
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row

FOLDER = BUILD / "sim"
SOURCES = CHECKOUT / "src"
AS_PYTHON = "spillway as Python"  # the sources, where ours is their compiled copy
DRIVERS = Path(__file__).resolve().parent / "drivers"
PROFILE = "llama-3.1-8b-h100"
HASH_BLOCK_TOKENS = 512  # AISimulate's, in its trace format
KV_GB_PER_S = 25.0  # the default of our scenarios


class Means(NamedTuple):
    """What a simulator says about a run: requests that finished, and their mean latencies."""

    finished: int
    ttft_s: float
    e2e_s: float


class Simulator(NamedTuple):
    """A simulator. write: a trace in its format.  command: its run, given trace and nodes a pool.

    means: what its last run said; ours runs again.  same_law: whether its step times are those that
    our profile was fitted to.
    """

    name: str
    version: str
    write: Callable[[Path, Sequence[Row]], None]
    command: Callable[[Path, int], list[str]]
    means: Callable[[Sequence[Row], int], Means]
    same_law: bool


def compiled() -> Path:
    """Return the folder of the compiled copy, made now if there is no current one.

    Raises BenchError where it cannot be made, as without a C compiler.
    """
    spec = spec_from_file_location("compiled", CHECKOUT / "scripts" / "compiled.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    try:
        if not script.is_current():
            script.build()
    except subprocess.CalledProcessError as error:
        raise BenchError("the package could not be compiled: make compiled says why") from error
    folder: Path = script.FOLDER
    return folder


def spillway(
    policy: str = "round-robin", *, package: Path = SOURCES, name: str = OURS
) -> Simulator:
    """Return this project's simulator, from the command that users run.

    package: where the package is, the sources or their compiled copy.
    """

    def command(trace: Path, nodes: int) -> list[str]:
        return [
            *("env", f"PYTHONPATH={package}"),
            *(sys.executable, "-m", "spillway", "simulate", "--trace", str(trace)),
            *("--cluster", f"{nodes}p{nodes}d", "--policy", policy, "--profile", PROFILE),
            *("--json", str(FOLDER / "ours.json")),
        ]

    def means(rows: Sequence[Row], nodes: int) -> Means:
        cluster = f"{nodes}p{nodes}d"
        scenario = Scenario(cluster=cluster, policy=policy, profile=PROFILE)
        return _means_of(simulate(scenario, list(rows), 1).records)

    return Simulator(name, "this checkout", _write_ours, command, means, same_law=True)


def _means_of(records: Sequence[RequestRecord]) -> Means:
    done = [one for one in records if one.ttft_s is not None and one.finish_s is not None]
    return Means(
        len(done),
        fmean(one.ttft_s or 0.0 for one in done),
        fmean((one.finish_s or 0.0) - one.arrival_s for one in done),
    )


def aisimulate() -> Simulator:
    """Return AISimulate, installed now if it is not yet. Raises BenchError."""
    program, out = environment("aisimulate") / "aisimulate", FOLDER / "aisimulate"

    def command(trace: Path, nodes: int) -> list[str]:
        configuration = trace.with_suffix(".yaml")
        # JSON is YAML
        text = json.dumps(_aisimulate_configuration(trace, nodes))
        configuration.write_text(text, encoding="utf-8")
        return [
            *(str(program), "predict", "-c", str(configuration)),
            *("--output-dir", str(out), "--overwrite"),
        ]

    return Simulator(
        "AISimulate",
        pinned_version("aisimulate"),
        _write_mooncake,
        command,
        lambda _rows, _nodes: _read_aisimulate(out),
        same_law=True,
    )


def sr_sim() -> Simulator:
    """Return vllm-sr-sim, installed now if it is not yet. Raises BenchError."""
    python, out = environment("vllm-sr-sim") / "python", FOLDER / "sr-sim.json"

    def command(trace: Path, nodes: int) -> list[str]:
        driver = str(DRIVERS / "sr_sim.py")
        return [str(python), driver, str(trace), str(2 * nodes), str(out)]

    def means(_rows: Sequence[Row], _nodes: int) -> Means:
        return Means(**json.loads(out.read_text(encoding="utf-8")))

    version = pinned_version("vllm-sr-sim")
    return Simulator("vllm-sr-sim", version, _write_azure, command, means, same_law=False)


PEER_SIMULATORS = {"aisimulate": aisimulate, "vllm-sr-sim": sr_sim}


# --- formats ---------------------------------------------------------------------------------


def _write_ours(path: Path, rows: Sequence[Row]) -> None:
    _write_lines(
        path,
        "arrival_s,prompt_tokens,output_tokens\n",
        (f"{row.arrival_s:.6f},{row.prompt_tokens},{row.output_tokens}\n" for row in rows),
    )


def _write_azure(path: Path, rows: Sequence[Row]) -> None:
    _write_lines(
        path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\n",
        (f"{row.arrival_s:.6f},{row.prompt_tokens},{row.output_tokens}\n" for row in rows),
    )


def _write_mooncake(path: Path, rows: Sequence[Row]) -> None:
    """Write a Mooncake trace in which no two prompts share a block."""
    lines, block = [], 0
    for row in rows:
        blocks = -(-row.prompt_tokens // HASH_BLOCK_TOKENS)
        entry = {
            "timestamp": round(row.arrival_s * 1000),
            "input_length": row.prompt_tokens,
            "output_length": row.output_tokens,
            "hash_ids": list(range(block, block + blocks)),
        }
        block += blocks
        lines.append(json.dumps(entry) + "\n")
    _write_lines(path, "", lines)


def _write_lines(path: Path, head: str, lines: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        file.writelines(lines)


def _aisimulate_configuration(trace: Path, nodes: int) -> dict[str, Any]:
    workers = {"parallelism": {"replicas": nodes}}
    return {
        "traffic": {
            "source": {
                "type": "trace",
                "paths": [str(trace)],
                "format": "mooncake",
                "block_size": HASH_BLOCK_TOKENS,
            },
            "load": {"type": "trace_timestamps"},
        },
        "engine": {
            "mode": "disaggregated",
            "model": "meta-llama/Meta-Llama-3.1-8B",
            "hardware": "h100_sxm",
            "backend": "vllm",
            "workers": {"prefill": workers, "decode": workers},
            "kv_transfer": {"bandwidth_gb_per_second": KV_GB_PER_S},
        },
    }


def _read_aisimulate(out: Path) -> Means:
    said = json.loads((out / "prediction.json").read_text(encoding="utf-8"))
    return Means(
        said["completed_requests"], said["mean_ttft_ms"] / 1e3, said["mean_e2e_latency_ms"] / 1e3
    )
