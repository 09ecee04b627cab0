"""Random clients, random deaths, by seed: whatever happens, everything ends and adds up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

NAMES = ("p0", "p1", "d0", "d1")
POLICIES = ("headroom", "kairos-paper", "least-loaded")
REQUESTS = 100
SLOW = {"time_scale": 0.5, "lease_s": 1.0}


async def kill_and_restart(cluster, draw, ended: asyncio.Event) -> None:
    """Kill engines and start them again until it is ended; then all are there."""
    while not ended.is_set():
        await asyncio.sleep(draw.uniform(0.01, 0.12))
        name = draw.choice(NAMES)
        if name in cluster.engines:
            await cluster.kill(name)
        await asyncio.sleep(draw.uniform(0.0, 0.15))
        if draw.random() < 0.8:
            await start_missing(cluster)
    await start_missing(cluster)


async def start_missing(cluster) -> None:
    for name in NAMES:
        if name not in cluster.engines:
            await cluster.restart(name)


async def send_at_random(cluster, wish, draw) -> list:
    """Send requests of every kind; one client in five leaves before long."""
    tasks = []
    loop = asyncio.get_running_loop()
    for seed in range(REQUESTS):
        one = wish(
            kind=draw.choice(["ids", "text", "chat"]),
            prompt_tokens=draw.choice([5, 50, 500, 4000]),
            output_tokens=draw.randint(1, 40),
            stream=draw.random() < 0.6,
            seed=seed,
        )
        tasks.append(cluster.send(one))
        if draw.random() < 0.2:
            loop.call_later(draw.uniform(0.0, 0.1), tasks[-1].cancel)
        if draw.random() < 0.2:
            await asyncio.sleep(draw.uniform(0.0, 0.04))
    return tasks


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "policy"), list(enumerate(POLICIES)))
async def test_everything_ends_and_adds_up(cluster, wish, seed, policy):
    draw = random.Random(seed)
    await cluster.start(policy=policy, keep_alive=False, engine=SLOW)
    ended = asyncio.Event()
    chaos = asyncio.ensure_future(kill_and_restart(cluster, draw, ended))
    tasks = await send_at_random(cluster, wish, draw)
    await asyncio.sleep(0.1)
    ended.set()
    await chaos

    ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20.0)

    replies = [end for end in ends if not isinstance(end, BaseException)]
    left = [end for end in ends if isinstance(end, asyncio.CancelledError)]
    assert len(replies) + len(left) == REQUESTS
    for reply in replies:
        reply.check()
    await check_books(cluster, Counter(reply.outcome for reply in replies))
    await cluster.until(lambda: all(n.is_up for n in cluster.server.health.nodes.values()))
    last = await cluster.ask(wish(seed=REQUESTS))
    assert last.outcome == "finished", "it works as before"
    await cluster.check_quiet()
    for node in cluster.ledger.values():
        await cluster.until(lambda view=node.view: not (view.backlog_tokens or view.decode_seqs))


async def check_books(cluster, ends: Counter[str]) -> None:
    """Dispatcher, metrics and clients agree, but for what a client did not stay to see."""
    shell = cluster.server.shell
    assert not cluster.server.broken.done()
    await cluster.until(lambda: not shell.live)
    counts = cluster.counts
    assert sum(counts.values()) == shell.dispatcher.arrived <= REQUESTS
    by_end: Counter[str] = Counter()
    for (_, end), count in shell.metrics.requests.items():
        by_end[end] += count
    assert by_end["finished"] == counts["FINISHED"] >= ends["finished"]
    assert by_end["failed"] + by_end["rejected"] == counts["FAILED"] + counts["REJECTED"]
    assert by_end["cancelled"] == counts["CANCELLED"]
    assert sum(by_end.values()) == shell.dispatcher.arrived
