"""The routers that are measured: this project's and its peers', how each is started and prepared.

Every peer runs with the policy that costs it least, round_robin, and logs only what goes wrong.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from comparison import OURS
from mocks import BUILD, BenchError
from peers import environment, pinned_version
from simulators import SOURCES


class Pools(NamedTuple):
    """What a router stands in front of. separate: both pools are used, else only decode nodes."""

    prefill_urls: tuple[str, ...]
    decode_urls: tuple[str, ...]
    separate: bool


class Router(NamedTuple):
    """A router to be measured: how it is started, and what it must be told once it answers."""

    name: str
    version: str
    command: Callable[[int, int, Pools], list[str]]  # port, metrics port, nodes
    introduce: Callable[[int, Pools], None] = lambda _port, _pools: None


def spillway(*, package: Path = SOURCES, name: str = OURS) -> Router:
    """Return this project's router, with everything on that it has.

    package: where the package is, the sources or their compiled copy.
    """
    log = BUILD / f"decisions-{package.name}.jsonl"

    def command(port: int, _metrics_port: int, pools: Pools) -> list[str]:
        return ["env", f"PYTHONPATH={package}", *_spillway_command(port, pools, log)]

    return Router(name, "this checkout", command)


def vllm_router() -> Router:
    """Return vllm-router, installed now if it is not yet. Raises BenchError."""
    program = environment("vllm-router") / "vllm-router"

    def command(port: int, metrics_port: int, pools: Pools) -> list[str]:
        if not pools.separate:
            return [
                *_common(program, port, metrics_port, "warning"),
                "--worker-urls",
                *pools.decode_urls,
            ]
        words = [*_common(program, port, metrics_port, "warning"), "--vllm-pd-disaggregation"]
        for url in pools.prefill_urls:
            words += ["--prefill", url]
        return words + _decode_flags(pools)

    return Router("vllm-router", pinned_version("vllm-router"), command)


def smg() -> Router:
    """Return smg (Shepherd Model Gateway), installed now if it is not yet. Raises BenchError."""
    program = environment("smg") / "smg"

    def command(port: int, metrics_port: int, pools: Pools) -> list[str]:
        words = [*_common(program, port, metrics_port, "error", "launch"), "--backend", "vllm"]
        if not pools.separate:
            return [*words, "--worker-urls", *pools.decode_urls]
        return [*words, "--pd-disaggregation", *_decode_flags(pools)]

    def introduce(port: int, pools: Pools) -> None:
        """Register the prefill nodes as NIXL's; given by flag they get no kv_transfer_params."""
        for url in pools.prefill_urls if pools.separate else ():
            _post_json(
                f"http://127.0.0.1:{port}/workers",
                {
                    "url": url,
                    "worker_type": "prefill",
                    "runtime_type": "vllm",
                    "kv_connector": "NixlConnector",
                },
            )

    return Router("smg", pinned_version("smg"), command, introduce)


PEER_ROUTERS = {"vllm-router": vllm_router, "smg": smg}


def _common(program: Path, port: int, metrics_port: int, log: str, *verb: str) -> list[str]:
    return [
        *(str(program), *verb, "--host", "127.0.0.1", "--port", str(port)),
        *("--policy", "round_robin", "--worker-startup-check-interval", "1"),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port)),
        *("--log-level", log),
    ]


def _decode_flags(pools: Pools) -> list[str]:
    return [word for url in pools.decode_urls for word in ("--decode", url)]


def _spillway_command(port: int, pools: Pools, log: Path) -> list[str]:
    log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "spillway", "serve", "--port", str(port)]
    for url in pools.prefill_urls:
        command += ["--prefill", url]
    # One pool is the policy `colocated`: it wants to know a stock engine's chunks, and a target for
    # gaps that no batch of mocks exceeds. The prefill nodes, which it must be given, stay idle.
    one_pool = ["colocated", "--decode-chunk-tokens", "512", "--slo-tbt-s", "10"]
    how = ["headroom"] if pools.separate else one_pool
    return [*command, *_decode_flags(pools), "--decision-log", str(log), "--policy", *how]


def _post_json(url: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(url, json.dumps(body).encode(), method="POST")
    request.add_header("content-type", "application/json")
    try:
        urllib.request.urlopen(request, timeout=10).close()
    except (urllib.error.URLError, OSError) as error:
        raise BenchError(f"{url} refused a node: {error}") from None


def quiet_environment(*, one_thread: bool) -> dict[str, str]:
    """Return the variables of a router's process: no proxies, one thread if it is pinned."""
    kept = {name: text for name, text in os.environ.items() if "proxy" not in name.lower()}
    return kept | ({"TOKIO_WORKER_THREADS": "1"} if one_thread else {})
