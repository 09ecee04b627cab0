"""Fake engines on loopback sockets whose steps take about half a millisecond."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from builders import make_profile
from spillway.core.latency import LatencyProfile
from spillway.core.types import Role
from spillway.fakeengine.engine import EngineSettings, RunningEngine, start_engine
from spillway.wire.profile import Coefficients, ProfileFile, Provenance, write_profile_file

# Slow prefill and slow KV reads beside a short step, so that each coefficient shows in small tests.
TRUE = make_profile(
    name="true",
    step_base_s=4e-4,
    token_hinges=(0, 128),
    token_s=(1e-6, 3e-6),
    kv_token_s=5e-8,
    token_pair_s=1e-9,
)

StartEngine = Callable[..., Awaitable[RunningEngine]]


@pytest.fixture
def true_profile() -> LatencyProfile:
    return TRUE


@pytest.fixture
def true_profile_file(tmp_path: Path) -> str:
    """The true law as a file that engines read."""
    path = tmp_path / "true.json"
    words = ("source", "model", "gpu", "engine", "engine_version", "dtype", "date")
    profile = ProfileFile(
        schema_version=1,
        name="true",
        coefficients=Coefficients(
            step_base_s=TRUE.step_base_s,
            token_hinges=TRUE.token_hinges,
            token_s=TRUE.token_s,
            kv_token_s=TRUE.kv_token_s,
            token_pair_s=TRUE.token_pair_s,
        ),
        kv_bytes_per_token=TRUE.kv_bytes_per_token,
        provenance=Provenance(tensor_parallel=1, **dict.fromkeys(words, "made up")),
        kv_capacity_tokens=60_000,
    )
    write_profile_file(path, profile)
    return str(path)


@pytest.fixture
async def start(true_profile_file: str) -> AsyncIterator[StartEngine]:
    """Start engines that are closed when the test ends: `await start(stock=True, ...)`."""
    running: list[RunningEngine] = []

    async def start_one(**changes: Any) -> RunningEngine:
        fields: dict[str, Any] = {
            "role": Role.DECODE,
            "profile": true_profile_file,
            "context_tokens_max": 4096,
            "chunk_tokens_max": 512,
        }
        running.append(await start_engine(EngineSettings(**(fields | changes))))
        return running[-1]

    yield start_one
    for engine in running:
        await engine.close()
