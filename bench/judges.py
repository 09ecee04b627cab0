"""The load generators of others, each in its own environment: how one is run, and what it says.

They send the same kind of load to the same router: streamed completions of one length, at a rate.
Their tokenizer comes from a package, so that nothing is fetched while they run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mocks import BUILD, BenchError
from peers import ENVIRONMENTS, INSTALL_S_MAX, environment, pinned_version

FOLDER = BUILD / "judges"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class Load(NamedTuple):
    """What a judge is asked to send: streams of fixed lengths at a constant rate."""

    url: str
    model: str
    rate_per_s: float
    requests: int
    prompt_tokens: int
    output_tokens: int

    @property
    def duration_s(self) -> float:
        """Return how long the load lasts."""
        return self.requests / self.rate_per_s


class Verdict(NamedTuple):
    """What a judge measured: requests answered whole, its errors, mean TTFT, mean from first token
    to last.

    Not its gaps: those are between the tokens that its tokenizer finds in the text, which are not
    those that the engine sent.
    """

    completed: int
    errors: int
    ttft_s: float
    stream_s: float


class Judge(NamedTuple):
    """A load generator. command: its run, with results in a folder.  read: what it found there."""

    name: str
    version: str
    command: Callable[[Load, Path], list[str]]
    read: Callable[[Path], Verdict]
    variables: dict[str, str]


def inference_perf() -> Judge:
    """Return inference-perf, installed now if it is not yet. Raises BenchError."""
    program = environment("inference-perf", ("python3.12", "python3.13")) / "inference-perf"

    def command(load: Load, folder: Path) -> list[str]:
        lengths = {name: _fixed(getattr(load, f"{name}_tokens")) for name in ("prompt", "output")}
        configuration = {
            "api": {"type": "completion", "streaming": True},
            "data": {
                "type": "random",
                "input_distribution": lengths["prompt"] | {"total_count": load.requests},
                "output_distribution": lengths["output"] | {"total_count": load.requests},
            },
            "load": {
                "type": "constant",
                "interval": 1,
                "num_workers": 1,
                "stages": [{"rate": load.rate_per_s, "duration": round(load.duration_s)}],
            },
            "server": {
                "type": "vllm",
                "model_name": load.model,
                "base_url": load.url,
                "ignore_eos": True,
            },
            "tokenizer": {"pretrained_model_name_or_path": str(tokenizer())},
            "report": {"request_lifecycle": {"summary": True}},
            "storage": {"local_storage": {"path": str(folder)}},
        }
        path = folder / "configuration.yaml"
        path.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
        return [str(program), "-c", str(path)]

    def read(folder: Path) -> Verdict:
        summary = _only_json(folder, "summary_lifecycle_metrics.json")
        said = summary["successes"]
        whole_s = said["latency"]["request_latency"]["mean"]
        ttft_s = said["latency"]["time_to_first_token"]["mean"]
        return Verdict(said["count"], summary["failures"]["count"], ttft_s, whole_s - ttft_s)

    version = pinned_version("inference-perf")
    return Judge("inference-perf", version, command, read, {"HF_HUB_OFFLINE": "1"})


def aiperf(install_s_max: float = INSTALL_S_MAX) -> Judge:
    """Return aiperf, installed now if it is not yet. Raises BenchError."""
    program = environment("aiperf", s_max=install_s_max) / "aiperf"

    def command(load: Load, folder: Path) -> list[str]:
        return [
            *(str(program), "profile", "--model", load.model, "--url", load.url),
            *("--endpoint-type", "completions", "--streaming", "--tokenizer", str(tokenizer())),
            *("--synthetic-input-tokens-mean", str(load.prompt_tokens)),
            *("--synthetic-input-tokens-stddev", "0"),
            *("--output-tokens-mean", str(load.output_tokens), "--output-tokens-stddev", "0"),
            *("--extra-inputs", "ignore_eos:true"),
            *("--request-rate", str(load.rate_per_s), "--request-rate-mode", "constant"),
            *("--request-count", str(load.requests), "--ui", "simple"),
            *("--no-gpu-telemetry", "--no-server-metrics", "--artifact-dir", str(folder)),
        ]

    def read(folder: Path) -> Verdict:
        said = _only_json(folder, "profile_export_aiperf.json")
        whole_s = said["request_latency"]["avg"] / 1e3
        ttft_s = said["time_to_first_token"]["avg"] / 1e3
        errors = sum(kind["count"] for kind in said["error_summary"])
        return Verdict(round(said["request_count"]["avg"]), errors, ttft_s, whole_s - ttft_s)

    return Judge("aiperf", pinned_version("aiperf"), command, read, {})


JUDGES = {"inference-perf": inference_perf, "aiperf": aiperf}


def tokenizer(install_s_max: float = INSTALL_S_MAX) -> Path:
    """Return a folder with a tokenizer in it, taken from a package. Raises BenchError."""
    folder = FOLDER / "tokenizer"
    environment("tokenizer", s_max=install_s_max)
    for name in TOKENIZER_FILES:
        found = sorted((ENVIRONMENTS / "tokenizer").glob(f"lib/*/site-packages/*/{name}"))
        if not found:
            raise BenchError(f"the package of requirements/peers-tokenizer.txt has no {name}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[0], folder / name)
    return folder


def variables(judge: Judge) -> dict[str, str]:
    """Return the environment of a judge's process: no proxy, and nothing sent home."""
    kept = {name: text for name, text in os.environ.items() if "proxy" not in name.lower()}
    return kept | judge.variables | {"DO_NOT_TRACK": "1", "NO_COLOR": "1"}


def _fixed(tokens: int) -> dict[str, float]:
    return {"min": tokens, "max": tokens, "mean": tokens, "std_dev": 0}


def _only_json(folder: Path, name: str) -> dict[str, Any]:
    found = sorted(folder.rglob(name))
    if len(found) != 1:
        raise BenchError(f"{len(found)} files called {name} where one was expected")
    said: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
    return said
