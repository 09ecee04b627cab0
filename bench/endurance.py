"""What the router endures: a long steady load (soak), and nodes that die and hang (chaos).

    .venv/bin/python bench/endurance.py soak --duration-s 3600 --rate 200 --concurrent 2000
    .venv/bin/python bench/endurance.py chaos --duration-s 600

Soak: nodes and load in C around one router; every stream's events are counted by the load, and a
reader in Python checks the order of every event of a sample. Chaos: simulated engines in processes
of their own, killed and paused; every token of every request is checked. Both end with one JSON
object and exit status 1 if a promise of docs/reliability.md is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
from mocks import BUILD, Place, load_result, load_running, mock_node, pss_bytes
from rig import free_port

from spillway.wire.faketext import expected_token, prompt_digest

CLI = [sys.executable, "-m", "spillway"]
ANYWHERE = Place(None)
START_S_MAX = 60.0
MEMORY_GROWTH_FRAC_MAX = 0.05
FAULT_EVERY_S = 5.0
WARM_UP_S = 120.0
TELL_EVERY_S = 30.0
MODEL = "fake-llama"


@asynccontextmanager
async def process(name: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a spillway command for the length of a block, its output in the build folder."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"endurance-{name}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*CLI, *arguments, stdout=log, stderr=log)
    try:
        yield child
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGCONT)
                child.terminate()
            try:
                await asyncio.wait_for(child.wait(), 15.0)
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


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


# --- soak ------------------------------------------------------------------------------------


async def soak(asked: argparse.Namespace) -> dict[str, Any]:
    """Return what a steady load did to one router: errors, memory, open files."""
    stream_s = asked.concurrent / asked.rate
    chunks = 50
    spacing_us = int(stream_s / chunks * 1e6)
    with ExitStack() as stack:
        async with (
            AsyncExitStack() as later,
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True)  # the router's files are counted
            ) as session,
        ):
            prefill = [stack.enter_context(mock_node(ANYWHERE)) for _ in range(2)]
            decode = [
                stack.enter_context(mock_node(ANYWHERE, chunks=chunks, spacing_us=spacing_us))
                for _ in range(2)
            ]
            port = free_port()
            urls = [f"--prefill=http://127.0.0.1:{one}" for one in prefill]
            urls += [f"--decode=http://127.0.0.1:{one}" for one in decode]
            flags = (*urls, "--port", str(port))
            router = await later.enter_async_context(process("router", "serve", *flags))
            url = f"http://127.0.0.1:{port}"
            await answered(session, f"{url}/health")
            files_before = open_files(router.pid)
            loading = stack.enter_context(
                load_running(
                    ANYWHERE,
                    port,
                    rate=asked.rate,
                    duration_s=asked.duration_s,
                    drain_s=stream_s * 3 + 10,
                    stream=True,
                    expect_events=chunks,
                )
            )
            seen = await watch(session, url, router.pid, asked, chunks, stream_s)
            result = await asyncio.to_thread(load_result, loading)
            faults = await upstream_errors(session, url)
            await asyncio.sleep(6.0)  # idle connections to nodes are kept for 4 s
            left_files = open_files(router.pid) - files_before
    growth_frac = seen["pss_mib_last"] / seen["pss_mib_settled"] - 1
    return {
        "sent": result.sent,
        "completed": result.completed,
        "failed": result.failed,
        "unfinished": result.unfinished,
        "upstream_errors": faults,
        **seen,
        "memory_growth_frac": round(growth_frac, 4),
        "files_left_open": left_files,
        "kept": not result.failed
        and not result.unfinished
        and not seen["sampled_wrong"]
        and growth_frac <= MEMORY_GROWTH_FRAC_MAX
        and left_files <= 2,
    }


async def watch(
    session: aiohttp.ClientSession,
    url: str,
    pid: int,
    asked: argparse.Namespace,
    chunks: int,
    stream_s: float,
) -> dict[str, Any]:
    """Sample 1 % of the requests, every event of them, and the router's memory."""
    began_s = time.monotonic()
    tasks: set[asyncio.Task[bool]] = set()
    ends: Counter[bool] = Counter()
    pss: list[float] = []
    inflight_max = 0
    told_s = 0.0
    every_s = 100 / asked.rate
    while (now_s := time.monotonic() - began_s) < asked.duration_s:
        task = asyncio.create_task(in_order(session, url, chunks))
        tasks.add(task)
        task.add_done_callback(lambda done: (tasks.discard(done), ends.update([done.result()])))
        # By then the load is at its height, and the rings of the last decisions are full.
        if now_s > min(max(3 * stream_s, WARM_UP_S), asked.duration_s / 2):
            pss.append(pss_bytes(pid) / 2**20)
        async with session.get(f"{url}/dashboard/data") as answer:
            inflight = json.loads(await answer.read())["inflight"]
        inflight_max = max(inflight_max, inflight)
        if now_s >= told_s + TELL_EVERY_S:
            told_s = now_s
            memory = f"{pss_bytes(pid) / 2**20:.1f} MiB"
            tell(f"{now_s:.0f} s: {inflight} open, router {memory}, {ends[False]} samples wrong")
        await asyncio.sleep(every_s)
    await asyncio.gather(*tasks)
    tenth = max(1, len(pss) // 10)
    return {
        "sampled": sum(ends.values()),
        "sampled_wrong": ends[False],
        "inflight_max": inflight_max,
        "pss_mib_settled": round(sum(pss[:tenth]) / tenth, 2),
        "pss_mib_last": round(sum(pss[-tenth:]) / tenth, 2),
    }


async def upstream_errors(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """Return the router's count of failed legs and questions, by kind."""
    found: Counter[str] = Counter()
    async with session.get(f"{url}/metrics") as answer:
        for line in (await answer.text()).splitlines():
            if line.startswith("spillway_upstream_errors_total{"):
                found[line.split('kind="')[1].split('"')[0]] += int(line.split()[-1])
    return dict(sorted(found.items()))


async def in_order(session: aiohttp.ClientSession, url: str, chunks: int) -> bool:
    """Return whether a stream has every event once, in order: each says when it was made."""
    body = {"model": "mock", "prompt": "hello", "max_tokens": chunks, "stream": True}
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            events = (await answer.read()).split(b"\n\n")
    except (aiohttp.ClientError, TimeoutError):
        return False
    made = [event for event in events if event.startswith(b"data: ") and b"[DONE]" not in event]
    return len(made) == chunks and made == sorted(made) and len(set(made)) == chunks


# --- chaos -----------------------------------------------------------------------------------


class Engines:
    """Simulated engines that can be killed, started again, paused and woken."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self.ports = {name: free_port() for name in ("p0", "p1", "d0", "d1")}
        self.running: dict[str, asyncio.subprocess.Process] = {}

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    async def start(self, name: str) -> None:
        role = "prefill" if name.startswith("p") else "decode"
        flags = ("--role", role, "--name", name, "--port", str(self.ports[name]))
        self.running[name] = await self._stack.enter_async_context(
            process(name, "engine", *flags, "--model", MODEL)
        )

    async def kill(self, name: str) -> None:
        child = self.running.pop(name)
        child.kill()
        await child.wait()

    async def trouble(self, draw: random.Random, session: aiohttp.ClientSession) -> str:
        """Do one of them harm for some seconds, never the last of a role; return what was done."""
        name = draw.choice(sorted(self.running))
        kind = draw.choice(["kill", "pause"])
        if kind == "kill":
            await self.kill(name)
            await asyncio.sleep(draw.uniform(0.5, 1.5))
            await self.start(name)
            await answered(session, f"{self.url(name)}/health")
        else:
            self.running[name].send_signal(signal.SIGSTOP)
            await asyncio.sleep(draw.uniform(0.5, 3.5))
            self.running[name].send_signal(signal.SIGCONT)
        return kind


async def chaos(asked: argparse.Namespace) -> dict[str, Any]:
    """Return how requests ended while one engine at a time was killed or paused."""
    draw = random.Random(asked.seed)  # noqa: S311 - faults by seed, no secret
    async with AsyncExitStack() as stack:
        limits = aiohttp.ClientTimeout(total=60.0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=limits, connector=aiohttp.TCPConnector(limit=0))
        )
        engines = Engines(stack)
        for name in engines.ports:
            await engines.start(name)
        for name in engines.ports:
            await answered(session, f"{engines.url(name)}/health")
        port = free_port()
        flags = [f"--prefill={engines.url(name)}" for name in ("p0", "p1")]
        flags += [f"--decode={engines.url(name)}" for name in ("d0", "d1")]
        await stack.enter_async_context(process("router", "serve", *flags, "--port", str(port)))
        url = f"http://127.0.0.1:{port}"
        await answered(session, f"{url}/health")
        faults: Counter[str] = Counter()
        sending = asyncio.create_task(send_all(session, url, asked, draw))
        until_s = time.monotonic() + asked.duration_s - FAULT_EVERY_S
        while time.monotonic() < until_s:
            await asyncio.sleep(FAULT_EVERY_S)
            faults[await engines.trouble(draw, session)] += 1
        ends = await sending
    served, lost = ends["finished"], ends["lost_mid_stream"]
    owed = sum(ends.values()) - lost
    return {
        "requests": sum(ends.values()),
        "ends": dict(sorted(ends.items())),
        "faults": dict(sorted(faults.items())),
        "served_frac": round(served / max(1, owed), 5),
        "kept": served >= 0.999 * owed and not ends["wrong"] and not ends["broken"],
    }


async def send_all(
    session: aiohttp.ClientSession, url: str, asked: argparse.Namespace, draw: random.Random
) -> Counter[str]:
    """Send at a steady pace, and return how all of them ended."""
    tasks = []
    for number in range(int(asked.duration_s * asked.rate)):
        tasks.append(asyncio.create_task(one_request(session, url, number, draw.random())))
        await asyncio.sleep(1 / asked.rate)
    return Counter(await asyncio.gather(*tasks))


async def one_request(session: aiohttp.ClientSession, url: str, number: int, chance: float) -> str:
    """Send a request and return how it ended; `wrong` is a token that is not the right one."""
    prompt = [1000 + (number * 7919 + at) % 30_000 for at in range(20 + int(1500 * chance**3))]
    whole = [expected_token(prompt_digest(prompt), at) for at in range(20)]
    body = {"model": MODEL, "prompt": prompt, "max_tokens": len(whole), "stream": True}
    texts: list[str] = []
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            raw = await answer.read()
            if answer.status != 200:
                return f"http_{answer.status}"
    except (aiohttp.ClientError, TimeoutError):
        return "broken"
    for event in raw.decode().split("\n\n"):
        data = event.removeprefix("data: ")
        if data.startswith("{"):
            content = json.loads(data)
            if "error" in content:
                return "lost_mid_stream" if texts == whole[: len(texts)] else "wrong"
            texts += [choice["text"] for choice in content["choices"] if choice["text"]]
    return "finished" if texts == whole else "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("soak", "chaos"))
    parser.add_argument("--duration-s", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.0, help="per second; 0: 200 or 10")
    parser.add_argument("--concurrent", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    asked.rate = asked.rate or (200.0 if asked.kind == "soak" else 10.0)
    tell(f"{asked.kind} for {asked.duration_s:g} s at {asked.rate:g}/s ...")
    found = asyncio.run((soak if asked.kind == "soak" else chaos)(asked))
    print(json.dumps({"kind": asked.kind, "duration_s": asked.duration_s, **found}, indent=2))
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
