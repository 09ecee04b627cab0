"""A router that stood still blames nobody: no request fails by it, and no node is out of use."""

from __future__ import annotations

import asyncio
import re
import signal

import aiohttp
import pytest

from e2e.test_processes import PROMPT, Process, body, processes, session
from spillway.wire.faketext import expected_token, prompt_digest

pytestmark = pytest.mark.slow

__all__ = ["processes", "session"]  # fixtures

STALL_S = 4.5
CLIENTS = 8
OUTPUT_TOKENS = 40
WHOLE = "".join(expected_token(prompt_digest(PROMPT), index) for index in range(OUTPUT_TOKENS))
# Each would end a request, or take a node out, for less than the router stands still.
TIGHT = {
    "first_byte_s": 3.5,
    "stream_silence_s": 3.5,
    "health_interval_s": 0.2,
    "health_failures_max": 1,
    "breaker_failures": 1,
    "gap_sample_every": 1,
}


async def start_all(processes, reports: bool) -> Process:
    """Return a router in front of two prefill and two decode engines."""
    engine = ("engine", "--port", "0", "--end-with-parent")
    silent = {"decode": () if reports else ("--stock",)}
    roles = ("prefill", "prefill", "decode", "decode")
    engines = [
        await processes.start(*engine, "--role", role, *silent.get(role, ())) for role in roles
    ]
    urls = [f"{{url: '{(await each.ready()).url}'}}" for each in engines]
    config = processes.folder / "cluster.yaml"
    settings = ", ".join(f"{name}: {value}" for name, value in TIGHT.items())
    config.write_text(
        f"nodes:\n  prefill: [{', '.join(urls[:2])}]\n  decode: [{', '.join(urls[2:])}]\n"
        f"classes: {{default: {{ttft_s: 5.0, tbt_s: 2.0}}}}\n"
        f"router: {{port: 0, {settings}}}\n"
    )
    router = await processes.start("serve", "--config", str(config), "--end-with-parent")
    return await router.ready()


async def sample(session: aiohttp.ClientSession, url: str) -> dict[str, float]:
    """Return the router's metrics."""
    async with session.get(f"{url}/metrics") as page:
        lines = re.findall(r"^(spillway_\S+) (\S+)$", await page.text(), re.MULTILINE)
    return {name: float(value) for name, value in lines}


@pytest.mark.parametrize("reports", [True, False])
async def test_a_router_that_is_stopped_for_seconds_blames_nobody(
    processes, session, reports: bool
) -> None:
    router = await start_all(processes, reports)
    texts: list[tuple[int, str, bool]] = []
    over = asyncio.Event()

    async def ask_on(stream: bool) -> None:
        while not over.is_set():
            asked = body(OUTPUT_TOKENS, stream=stream)
            async with session.post(f"{router.url}/v1/completions", json=asked) as answer:
                texts.append((answer.status, await answer.text(), stream))

    clients = [asyncio.ensure_future(ask_on(number % 4 > 0)) for number in range(CLIENTS)]
    await asyncio.sleep(2.0)
    for _ in range(2):
        router.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(STALL_S)
        finally:
            router.send(signal.SIGCONT)
        await asyncio.sleep(2.0)
    over.set()
    await asyncio.gather(*clients)

    assert len(texts) >= 2 * CLIENTS
    for status, text, stream in texts:
        assert (status, "error" in text) == (200, False), text
        assert not stream or text.endswith("data: [DONE]\n\n")
    assert sum(WHOLE in text for _, text, stream in texts if not stream) > 0
    figures = await sample(session, router.url)
    blamed = ("upstream_errors", "ejections", "node_strains", "reports_dropped", "drift_alarms")
    guilty = {
        name: value
        for name, value in figures.items()
        if any(word in name for word in blamed) and value
    }
    assert guilty == {}
    usable = [value for name, value in figures.items() if "node_usable" in name]
    assert usable == [1.0] * 4
    assert figures["spillway_loop_stalls_total"] >= 2
    assert figures["spillway_loop_stalled_seconds_total"] >= 2 * (STALL_S - 0.5)
