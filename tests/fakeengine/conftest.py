"""Engines on real loopback sockets, with a profile whose steps take about a millisecond."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from spillway.core.types import Role
from spillway.fakeengine.engine import EngineSettings, RunningEngine, start_engine
from spillway.wire.faketext import expected_token, prompt_digest
from spillway.wire.profile import Coefficients, ProfileFile, Provenance, write_profile_file

SIX_KEYS = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}


@pytest.fixture
def fast_profile(tmp_path: Path) -> str:
    """A profile file: 1 ms per step, next to nothing per token."""
    path = tmp_path / "fast.json"
    law = Coefficients(
        step_base_s=1e-3, token_hinges=(0,), token_s=(1e-7,), kv_token_s=0.0, token_pair_s=0.0
    )
    told = Provenance(
        source="made up",
        model="fake",
        gpu="none",
        tensor_parallel=1,
        engine="fake",
        engine_version="0",
        dtype="bf16",
        date="2026-01-01",
    )
    profile = ProfileFile(
        schema_version=1,
        name="fast",
        coefficients=law,
        kv_bytes_per_token=100_000,
        provenance=told,
        kv_capacity_tokens=100_000,
    )
    write_profile_file(path, profile)
    return str(path)


StartEngine = Callable[..., Awaitable[RunningEngine]]


@pytest.fixture
async def start(fast_profile: str) -> AsyncIterator[StartEngine]:
    """Start engines that are closed when the test ends: `await start(role="decode", ...)`."""
    running: list[RunningEngine] = []

    async def start_one(role: str = "decode", **changes: Any) -> RunningEngine:
        settings = EngineSettings(**({"role": Role(role), "profile": fast_profile} | changes))
        running.append(await start_engine(settings))
        return running[-1]

    yield start_one
    for engine in running:
        await engine.close()


class Client:
    """A small OpenAI client that also checks the shape of what it reads."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def post(
        self, engine: RunningEngine, body: dict | bytes, *, path="/v1/completions", **headers: str
    ) -> tuple[int, dict]:
        """Return (status, body) of a request that is not streamed."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(engine.url + path, data=data, headers=named) as answer:
            return answer.status, await answer.json()

    async def prefill(self, engine: RunningEngine, prompt: Any, **headers: str) -> dict:
        """Run a prefill leg and return its kv_transfer_params."""
        body = {"prompt": prompt, "max_tokens": 1, "min_tokens": 1, "stream": False}
        status, answer = await self.post(engine, body | {"kv_transfer_params": SIX_KEYS}, **headers)
        assert status == 200, answer
        return answer["kv_transfer_params"]

    async def stream(
        self, engine: RunningEngine, body: dict, *, path="/v1/completions", **headers: str
    ) -> list[dict]:
        """Return the chunks of a stream that must end with [DONE]."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.post(
            engine.url + path, json={"stream": True} | body, headers=named
        ) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.content_type == "text/event-stream"
            events = (await answer.read()).decode().split("\n\n")
        assert events.pop() == ""
        assert events.pop() == "data: [DONE]"
        assert all(event.startswith("data: ") for event in events)
        return [json.loads(event[6:]) for event in events]

    async def get(self, engine: RunningEngine, path: str) -> tuple[int, str]:
        async with self.session.get(engine.url + path) as answer:
            return answer.status, await answer.text()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(session)


@pytest.fixture
def expected() -> Callable[[Any, int], str]:
    """Return the text an engine writes: `expected(prompt, output_tokens)`."""

    def text(prompt: Any, output_tokens: int) -> str:
        digest = prompt_digest(prompt)
        return "".join(expected_token(digest, index) for index in range(output_tokens))

    return text


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait, at most two seconds, until a condition holds."""

    async def wait_for(holds: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 2.0
        while not holds():
            assert loop.time() < until_s, "it never came true"
            await asyncio.sleep(0.001)

    return wait_for
