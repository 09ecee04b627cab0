"""Spillway commands as processes for the length of a block, and what is asked of them over HTTP."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import aiohttp
from mocks import BUILD

CLI = [sys.executable, "-m", "spillway"]
START_S_MAX = 60.0
STOP_S_MAX = 15.0
LABEL = re.compile(r'(\w+)="([^"]*)"')


@asynccontextmanager
async def process(
    name: str, *arguments: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `serve` or `engine` for the length of a block, its output in the build folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(
            *(*CLI, *arguments, "--end-with-parent"),
            stdin=asyncio.subprocess.PIPE,  # closes with this process, however that ends
            stdout=log,
            stderr=log,
            env=env,
        )
    try:
        yield child
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.terminate()
            try:
                await asyncio.wait_for(child.wait(), STOP_S_MAX)
            except TimeoutError:
                child.kill()
                await child.wait()


async def answered(session: aiohttp.ClientSession, url: str) -> None:
    """Return once `url` answers 200. Raises TimeoutError."""
    async with asyncio.timeout(START_S_MAX):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get(url) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


async def samples(
    session: aiohttp.ClientSession, url: str, name: str
) -> list[tuple[dict[str, str], int]]:
    """Return a counter of the router's /metrics: labels and value of each of its samples."""
    async with session.get(f"{url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith(f"{name}{{")]
    return [(dict(LABEL.findall(labels)), int(value)) for labels, _, value in found]


def tell(line: str) -> None:
    """Say how a long run stands, beside its result on standard output."""
    print(line, file=sys.stderr, flush=True)
