"""What the router endures: a long steady load, with nodes and load in C around one router.

    .venv/bin/python bench/soak.py --duration-s 3600 --rate 200 --concurrent 2000

Every stream's events are counted by the load, and a reader in Python checks the order of every
event of a sample. It ends with one JSON object, and exit status 1 if a promise of
docs/reliability.md is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import aiohttp
from mocks import Place, load_result, load_running, mock_node, pss_bytes
from rig import free_port
from service import answered, process, samples, tell

ANYWHERE = Place(None)
MEMORY_GROWTH_FRAC_MAX = 0.05
WARM_UP_S = 120.0
TELL_EVERY_S = 30.0


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


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
            router = await later.enter_async_context(process("soak-router", "serve", *flags))
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
    for labels, count in await samples(session, url, "spillway_upstream_errors_total"):
        found[labels["kind"]] += count
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--duration-s", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--concurrent", type=int, default=2000)
    asked = parser.parse_args()
    tell(f"soak for {asked.duration_s:g} s at {asked.rate:g}/s ...")
    found = asyncio.run(soak(asked))
    print(json.dumps({"kind": "soak", "duration_s": asked.duration_s, **found}, indent=2))
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    sys.exit(main())
