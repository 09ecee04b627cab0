"""What the router does while its nodes, their wires and their clocks misbehave, one at a time.

    .venv/bin/python bench/chaos.py --duration-s 600

Simulated engines in processes of their own, each behind a wire that can be made bad
(bad_wire.py); every token of every request is checked. It ends with one JSON object, and exit
status 1 if a promise of docs/reliability.md is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import struct
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import Any

import aiohttp
from bad_wire import Spoil, Wire
from mocks import BUILD, compiled
from rig import free_port
from service import answered, process, samples, tell

from spillway.wire.faketext import expected_token, prompt_digest
from spillway.wire.report import REPORTS_PATH

FAULT_EVERY_S = 5.0
TELL_EVERY_S = 30.0
QUIET_S_MAX = 30.0
SERVED_FRAC_MIN = 0.999
MODEL = "fake-llama"
NAMES = ("p0", "p1", "d0", "d1")
OUTPUT_TOKENS = 20
PROMPT_TOKENS_MAX = 4_000  # a quarter of it on average: two prefill nodes are half busy at 10/s
KV_TOKENS = 20_000
FILL_TOKENS = 8_000  # three of these do not fit, so that whoever comes later waits
CLOCK_STEP_S_MAX = 7200
NEVER = ("wrong", "broken", "unclear")
FAULTS = ("kill", "pause", "slow", "clock_step", "full_kv", *Spoil)


class WallClock:
    """The wall clock of one process, which can be stepped while it runs."""

    def __init__(self, name: str) -> None:
        BUILD.mkdir(parents=True, exist_ok=True)
        self._path = BUILD / f"{name}.clockstep"
        self.step(0)

    def environment(self) -> dict[str, str]:
        """Return what a process must be started with. Raises BenchError without a compiler."""
        shim = compiled("clockstep", "-shared", "-fPIC")
        return {**os.environ, "LD_PRELOAD": str(shim), "CLOCKSTEP": str(self._path)}

    def step(self, by_s: int) -> None:
        """Let it be `by_s` ahead of the machine's (negative: behind)."""
        mode = "r+b" if self._path.exists() else "wb"
        with self._path.open(mode) as file:
            file.write(struct.pack("=q", by_s * 1_000_000_000))


class Engines:
    """Simulated engines and what can be done to them. said: faults done so far, by kind."""

    def __init__(
        self,
        stack: AsyncExitStack,
        session: aiohttp.ClientSession,
        draw: random.Random,
        *,
        verbose: bool,
    ) -> None:
        self._stack = stack
        self._session = session
        self._draw = draw
        self.ports = {name: free_port() for name in NAMES}
        self.wires = {
            name: Wire(free_port(), port, REPORTS_PATH, draw) for name, port in self.ports.items()
        }
        self.clocks = {name: WallClock(f"chaos-{name}") for name in (*NAMES, "router")}
        self.running: dict[str, asyncio.subprocess.Process] = {}
        self.said: Counter[str] = Counter()
        self.number = 0
        self.verbose = verbose
        self.began_s = time.monotonic()

    def url(self, name: str) -> str:
        """Return where an engine is reached around its wire."""
        return f"http://127.0.0.1:{self.ports[name]}"

    async def start(self, name: str) -> None:
        """Return once the engine answers, and its wire is up."""
        role = "prefill" if name.startswith("p") else "decode"
        flags = ["--role", role, "--name", name, "--port", str(self.ports[name])]
        flags += ["--model", MODEL, "--kv-tokens", str(KV_TOKENS)]
        self.running[name] = await self._stack.enter_async_context(
            process(f"chaos-{name}", "engine", *flags, env=self.clocks[name].environment())
        )
        await answered(self._session, f"{self.url(name)}/health")
        await self.wires[name].up()

    def shuffled(self) -> list[str]:
        """Return every kind of fault once, in an order of chance."""
        return self._draw.sample(FAULTS, len(FAULTS))

    async def trouble(self, kind: str) -> None:
        """Do one of them harm for some seconds, and see it well again."""
        name = self._draw.choice(NAMES)
        for_s = self._draw.uniform(0.5, 3.5)
        self.said[kind] += 1
        if self.verbose:
            tell(f"{time.monotonic() - self.began_s:.1f} s: {kind} {name} {for_s:.1f} s")
        if kind == "kill":
            await self._kill(name, for_s)
        elif kind == "pause":
            await self._pause(name, for_s)
        elif kind == "slow":
            until_s = time.monotonic() + for_s
            while time.monotonic() < until_s:
                await self._pause(name, 0.06)
                await asyncio.sleep(0.03)
        elif kind == "clock_step":
            self._step(self._draw.choice(list(self.clocks)))
            await asyncio.sleep(for_s)
        elif kind == "full_kv":
            await asyncio.gather(*(self._fill(name) for _ in range(3)))
        else:
            self.wires[name].spoil = Spoil(kind)
            await asyncio.sleep(for_s)
            self.wires[name].spoil = None

    async def _kill(self, name: str, for_s: float) -> None:
        child = self.running.pop(name)
        self.wires[name].down()
        child.kill()
        await child.wait()
        await asyncio.sleep(for_s / 2)
        await self.start(name)

    async def _pause(self, name: str, for_s: float) -> None:
        self.running[name].send_signal(signal.SIGSTOP)
        await asyncio.sleep(for_s)
        self.running[name].send_signal(signal.SIGCONT)

    def _step(self, name: str) -> None:
        by_s = self._draw.randrange(1, CLOCK_STEP_S_MAX) * self._draw.choice((-1, 1))
        self.clocks[name].step(by_s)

    async def _fill(self, name: str) -> None:
        """Take a good part of a node's KV, as somebody would who uses it beside the router."""
        self.number += 1
        prompt = [1000 + (self.number * 104_729 + at) % 30_000 for at in range(FILL_TOKENS)]
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 100, "ignore_eos": True}
        async with self._session.post(f"{self.url(name)}/v1/completions", json=body) as answer:
            await answer.read()


async def chaos(asked: argparse.Namespace) -> dict[str, Any]:
    """Return how requests ended while one thing at a time went wrong."""
    draw = random.Random(asked.seed)  # noqa: S311 - faults by seed, no secret
    async with AsyncExitStack() as stack:
        limits = aiohttp.ClientTimeout(total=60.0)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=limits, connector=connector)
        )
        troubled = random.Random(asked.seed + 1)  # noqa: S311
        engines = Engines(stack, session, troubled, verbose=asked.verbose)
        await asyncio.gather(*(engines.start(name) for name in NAMES))
        port = free_port()
        flags = ["--port", str(port)]
        for name, wire in engines.wires.items():
            kind = "prefill" if name.startswith("p") else "decode"
            flags.append(f"--{kind}=http://127.0.0.1:{wire.port}")
        clock = engines.clocks["router"].environment()
        await stack.enter_async_context(process("chaos-router", "serve", *flags, env=clock))
        url = f"http://127.0.0.1:{port}"
        await answered(session, f"{url}/health")
        ends: Counter[str] = Counter()
        sending = asyncio.create_task(send_all(session, url, asked, draw, ends))
        engines.began_s = time.monotonic()
        await faults_in_turn(engines, asked, ends)
        await sending
        left = await left_behind(session, url)
        routes = await routes_taken(session, url)
    lost = ends["lost_mid_stream"] + ends["cut_mid_stream"]
    owed = sum(ends.values()) - lost
    never = sum(ends[end] for end in NEVER)
    return {
        "requests": sum(ends.values()),
        "ends": dict(sorted(ends.items())),
        "routes": routes,
        "faults": dict(sorted(engines.said.items())),
        "served_frac": round(ends["finished"] / max(1, owed), 5),
        "left_behind": left,
        "kept": ends["finished"] >= SERVED_FRAC_MIN * owed and not never and not left,
    }


async def faults_in_turn(engines: Engines, asked: argparse.Namespace, ends: Counter[str]) -> None:
    """Do one fault after the other, every kind once before any comes again."""
    began_s = told_s = time.monotonic()
    turn: list[str] = []
    while time.monotonic() - began_s < asked.duration_s - FAULT_EVERY_S:
        if time.monotonic() - told_s > TELL_EVERY_S:
            told_s = time.monotonic()
            tell(
                f"{told_s - began_s:.0f} s: faults {sum(engines.said.values())}, ends {dict(ends)}"
            )
        turn = turn or engines.shuffled()
        next_s = time.monotonic() + FAULT_EVERY_S
        await engines.trouble(turn.pop())
        await asyncio.sleep(max(0.0, next_s - time.monotonic()))


async def left_behind(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """Return what is still open, or out of use, once everything was well again for a while."""
    until_s = time.monotonic() + QUIET_S_MAX
    while True:
        async with session.get(f"{url}/dashboard/data") as answer:
            data = json.loads(await answer.read())
        nodes = data["nodes"]
        left = {
            "in_flight": data["inflight"],
            "nodes_down": sum(not one["usable"] for one in nodes),
        }
        if not any(left.values()):
            return {}
        if time.monotonic() > until_s:
            return left
        await asyncio.sleep(0.5)


async def routes_taken(session: aiohttp.ClientSession, url: str) -> dict[str, int]:
    """Return how many requests that finished went which way, as the router counts them."""
    counted: Counter[str] = Counter()
    for labels, count in await samples(session, url, "spillway_requests_total"):
        if labels["outcome"] == "finished":
            counted[labels["route"]] += count
    return dict(sorted(counted.items()))


async def send_all(
    session: aiohttp.ClientSession,
    url: str,
    asked: argparse.Namespace,
    draw: random.Random,
    ends: Counter[str],
) -> None:
    """Send at a steady pace, and count how all of them ended."""
    tasks = []
    for number in range(int(asked.duration_s * asked.rate)):
        task = asyncio.create_task(one_request(session, url, number, draw.random()))
        task.add_done_callback(lambda done: ends.update([done.result()]))
        tasks.append(task)
        await asyncio.sleep(1 / asked.rate)
    await asyncio.gather(*tasks)


async def one_request(session: aiohttp.ClientSession, url: str, number: int, chance: float) -> str:
    """Send a request and return how it ended; tell of one that ended as none may.

    finished: every token was right.  http_NNN: refused, and told whether to try again.
    lost_mid_stream, cut_mid_stream: right so far, then an error, or the connection cut.
    wrong: a token was not the right one.  unclear: an error that says not what to do.
    broken: no answer, or an end before the first token that no error explains.
    """
    prompt_tokens = 20 + int(PROMPT_TOKENS_MAX * chance**3)
    prompt = [1000 + (number * 7919 + at) % 30_000 for at in range(prompt_tokens)]
    whole = [expected_token(prompt_digest(prompt), at) for at in range(OUTPUT_TOKENS)]
    stream = number % 4 != 0
    body = {"model": MODEL, "prompt": prompt, "max_tokens": len(whole), "stream": stream}
    raw, cut = b"", False
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            with suppress(aiohttp.ClientPayloadError):
                cut = True
                async for piece in answer.content.iter_any():
                    raw += piece
                cut = False
    except (aiohttp.ClientError, TimeoutError) as error:
        tell(f"request {number}: broken: {error!r}")
        return "broken"
    read = stream_end if stream and answer.status == 200 else answer_end
    end = read(answer.status, raw, whole, cut=cut)
    if end in NEVER:
        shown = f"{answer.status}{', cut' * cut}: {raw[:200]!r} ... {raw[-200:]!r}"
        tell(f"request {number}: {end}: {dict(answer.headers)} {shown}")
    return end


def answer_end(status: int, raw: bytes, whole: list[str], *, cut: bool) -> str:
    """Return how an answer that is no stream ended, as `one_request` says it."""
    if status != 200:
        return f"http_{status}" if b"try again" in raw and not cut else "unclear"
    if cut:
        return "cut_mid_stream" if raw else "broken"
    return "finished" if json.loads(raw)["choices"][0]["text"] == "".join(whole) else "wrong"


def stream_end(status: int, raw: bytes, whole: list[str], *, cut: bool) -> str:
    """Return how a stream ended, as `one_request` says it."""
    texts: list[str] = []
    events = raw.split(b"\n\n")
    for event in events[:-1]:  # behind the last empty line: nothing, or what a cut has left
        data = event.removeprefix(b"data: ")
        if not data.startswith(b"{"):
            continue
        content = json.loads(data)
        if "error" in content:
            if "try again" not in content["error"]["message"]:
                return "unclear"
            return "lost_mid_stream" if texts and texts == whole[: len(texts)] else "broken"
        texts += [choice["text"] for choice in content["choices"] if choice["text"]]
    if texts != whole[: len(texts)]:
        return "wrong"
    if cut:
        return "cut_mid_stream" if texts else "broken"
    return "finished" if texts == whole else "wrong"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=10.0, help="requests per second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="tell every fault as it begins")
    asked = parser.parse_args()
    tell(f"chaos for {asked.duration_s:g} s at {asked.rate:g}/s ...")
    found = asyncio.run(chaos(asked))
    print(json.dumps({"kind": "chaos", "duration_s": asked.duration_s, **found}, indent=2))
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
