"""Does it help a stock decode engine to be sent a long prompt as growing prefixes?

The idea: an engine with prefix caching computes only what is new of each prompt. So a router could
cut a deflected prompt itself: send its first c tokens with max_tokens 1, then 2c, and so on, and at
last the whole. Each engine step then holds at most c prompt tokens, whatever the engine's own step
limit is, and nothing has to be installed or configured. This measures what that comes to on real
vLLM: gaps of the streams that decode meanwhile, and the prompt's TTFT. The whole prompt at once and
prefixes of it go to an engine with large steps, and the whole to one that was started with small
steps; all in turns, one round at a time.

    make vllm-env && PYTHONPATH=src .venv/bin/python bench/growing_prefixes.py

Linux, two cores. The verdict is in docs/decisions/.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import aiohttp

from spillway.core.types import Role
from spillway.stats import percentile
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import MODEL_NAME, VllmPlan
from spillway.workload.seeds import stream

STREAM_PROMPT_TOKENS = 200
WARM_TOKENS = 20  # of each stream before anything is measured
QUIET_TOKENS = 40  # measured before the prompt is sent
VOCABULARY = range(300, 4000)
LARGE_TOKENS = 2048  # vLLM's default on small machines
BLOCK_TOKENS = 128  # what is cached of a prompt: whole blocks


@dataclass
class Stream:
    """One decoding stream and when its tokens came."""

    times_s: list[float] = field(default_factory=list)

    def gaps_s(self, since_s: float, until_s: float) -> list[float]:
        """Return the gaps that end in the time given."""
        return [
            later_s - earlier_s
            for earlier_s, later_s in zip(self.times_s, self.times_s[1:], strict=False)
            if since_s < later_s <= until_s
        ]


@dataclass(frozen=True)
class Round:
    """What one round showed. ttft_s: of the long prompt.  gaps_s: of the streams meanwhile."""

    ttft_s: float
    gaps_s: list[float]
    quiet_s: list[float]
    requests: int


class Engine:
    """One stock engine under test."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rng: Random) -> None:
        self._session = session
        self._url = url
        self._rng = rng

    def _prompt(self, tokens: int) -> list[int]:
        return [self._rng.choice(VOCABULARY) for _ in range(tokens)]

    async def _read(self, prompt: list[int], output_tokens: int, stream: Stream) -> None:
        body = {
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        async with self._session.post(f"{self._url}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    stream.times_s.append(time.perf_counter())

    async def round(self, streams: int, prompt_tokens: int, chunk_tokens: int) -> Round:
        """Let streams decode, send a prompt, whole (0) or by prefixes, and time it all."""
        running = [Stream() for _ in range(streams)]
        tasks = [
            asyncio.create_task(self._read(self._prompt(STREAM_PROMPT_TOKENS), 7000, one))
            for one in running
        ]
        try:
            await _until(running, WARM_TOKENS)
            quiet_from_s = time.perf_counter()
            await _until(running, WARM_TOKENS + QUIET_TOKENS)
            prompt = self._prompt(prompt_tokens)
            sent_s = time.perf_counter()
            cuts = range(chunk_tokens, prompt_tokens, chunk_tokens) if chunk_tokens else ()
            for cut in cuts:
                await self._read(prompt[:cut], 1, Stream())
            whole = Stream()
            await self._read(prompt, 1, whole)
            first_s = whole.times_s[0]
            await asyncio.sleep(0.1)  # the gap in which the first token came ends a little later
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Round(
            ttft_s=first_s - sent_s,
            gaps_s=[gap for one in running for gap in one.gaps_s(sent_s, first_s + 0.1)],
            quiet_s=[gap for one in running for gap in one.gaps_s(quiet_from_s, sent_s)],
            requests=len(cuts) + 1,
        )


async def _until(streams: list[Stream], tokens: int) -> None:
    async with asyncio.timeout(120):
        while min(len(one.times_s) for one in streams) < tokens:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def two_engines(
    small_tokens: int, asked: argparse.Namespace
) -> AsyncIterator[dict[int, str]]:
    """Start a stock engine with large steps and one with small steps, each on its core.

    Yields their URLs by step size. What they were started for, prefill or decode, changes nothing
    for a prompt that asks for no transfer.
    """
    small = ["--max-num-batched-tokens", str(small_tokens)]
    plan = VllmPlan(
        folder=asked.folder,
        python=asked.python,
        shape=asked.shape,
        step_tokens_max=LARGE_TOKENS,
        extra={Role.PREFILL: small, Role.DECODE: ["--enable-prefix-caching"]},
    )
    async with VllmCluster(plan) as cluster:
        nodes = cluster.nodes
        yield {LARGE_TOKENS: nodes["d0"].url, small_tokens: nodes["p0"].url}


async def measure(asked: argparse.Namespace) -> dict[str, list[Round]]:
    """Return the rounds of each way of sending the prompt, by its name."""
    found: dict[str, list[Round]] = {}
    rng = stream(asked.seed, "prompts")
    small_tokens = asked.chunks[0] + asked.streams
    ways = [(LARGE_TOKENS, 0), *((LARGE_TOKENS, chunk) for chunk in asked.chunks)]
    ways.append((small_tokens, 0))
    timeout = aiohttp.ClientTimeout(total=300)
    async with (
        two_engines(small_tokens, asked) as urls,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        engines = {tokens: Engine(session, url, rng) for tokens, url in urls.items()}
        for number in range(-1, asked.rounds):  # the first warms the engines up
            for step_tokens, chunk_tokens in ways if number % 2 else reversed(ways):
                name = way(step_tokens, chunk_tokens)
                engine = engines[step_tokens]
                one = await engine.round(asked.streams, asked.prompt_tokens, chunk_tokens)
                if number >= 0:
                    found.setdefault(name, []).append(one)
                    print(f"{name}: TTFT {one.ttft_s:.2f} s", file=sys.stderr, flush=True)
    return found


def way(step_tokens: int, chunk_tokens: int) -> str:
    """Return the name of one way to send a prompt."""
    how = f"prefixes of {chunk_tokens}" if chunk_tokens else "whole"
    return f"{how}, steps of {step_tokens}"


def p99_s(one: Round) -> float:
    """Return the 99th percentile of a round's gaps."""
    return percentile(sorted(one.gaps_s), 0.99)


def table(found: dict[str, list[Round]], baseline: str) -> list[dict[str, Any]]:
    """Return medians over rounds, the range of a round's p99, and ratios to one of the ways.

    A ratio is the median of those within each round, whose ways ran one after the other.
    """
    rows = []
    for name, rounds in found.items():
        p99_ms = [p99_s(one) * 1e3 for one in rounds]
        pairs = list(zip(rounds, found[baseline], strict=True))
        rows.append(
            {
                "how": name,
                "rounds": len(rounds),
                "requests": rounds[0].requests,
                "ttft_ms": round(median(one.ttft_s for one in rounds) * 1e3),
                "quiet_gap_ms": round(median(median(one.quiet_s) for one in rounds) * 1e3, 1),
                "gap_p50_ms": round(median(median(one.gaps_s) for one in rounds) * 1e3, 1),
                "gap_p99_ms": round(median(p99_ms), 1),
                "gap_p99_ms_range": (round(min(p99_ms), 1), round(max(p99_ms), 1)),
                "ttft_ratio": round(median(one.ttft_s / base.ttft_s for one, base in pairs), 2),
                "gap_p99_ratio": round(median(p99_s(one) / p99_s(base) for one, base in pairs), 2),
            }
        )
    return rows


def main() -> None:
    """Run the comparison and print a line per way of sending the prompt."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--folder", type=Path, default=Path("build/growing-prefixes"))
    parser.add_argument("--shape", default="m10", help="of the model; see vllmcluster/model.py")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--chunks", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if any(chunk % BLOCK_TOKENS for chunk in asked.chunks):
        parser.error(f"--chunks must be multiples of a KV block, {BLOCK_TOKENS} tokens")
    for row in table(asyncio.run(measure(asked)), way(asked.chunks[0] + asked.streams, 0)):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
