"""300 mixed requests through the router and four engines, two of which die under way."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

PER_WAVE = 100
KINDS = ("ids", "text", "chat")
SLOW = {"time_scale": 0.5, "lease_s": 1.5}  # KV that a dead node did not pull goes in the end


def draw_wave(wish, number: int) -> list:
    """Return a burst: every kind, streamed and not, one prompt in three long."""
    draw = random.Random(number)
    wishes = []
    for at in range(PER_WAVE):
        long = at % 3 == 0
        wishes.append(
            wish(
                kind=KINDS[at % 7 % 3],
                prompt_tokens=draw.randint(3000, 8000) if long else draw.randint(3, 60),
                output_tokens=draw.randint(1, 30),
                stream=at % 4 != 0,
                seed=PER_WAVE * number + at,
                usage=at % 5 == 0,
            )
        )
    return wishes


async def send_wave(cluster, wishes) -> list:
    """Send in bursts that meet every phase of the ones before."""
    tasks = []
    for at, one in enumerate(wishes):
        tasks.append(cluster.send(one))
        if at % 40 == 39:
            await asyncio.sleep(0.1)
    return tasks


async def busy_one(cluster, *names: str, requests: int) -> str:
    """Return the first of the engines that works on so many requests."""

    def busy() -> list[str]:
        return [name for name in names if cluster.flights(name) >= requests]

    await cluster.until(busy)
    return busy()[0]


@pytest.mark.slow
async def test_every_token_of_every_stream_while_engines_die_and_return(cluster, wish):
    # Without connections used again: the router may close one after a broken stream, and a client
    # that sends its next request on it in that moment would lose it.
    await cluster.start(policy="headroom", keep_alive=False, engine=SLOW)
    waves = asyncio.ensure_future(send_wave(cluster, draw_wave(wish, 0) + draw_wave(wish, 1)))
    prefill = await busy_one(cluster, "p0", "p1", requests=1)
    dead_prefill = await cluster.kill(prefill)
    decode = await busy_one(cluster, "d0", "d1", requests=3)
    dead_decode = await cluster.kill(decode)
    assert dead_prefill.backend.metrics.finished["error"] > 0, "it died with work in hand"
    assert dead_decode.backend.metrics.finished["error"] > 0, "it died with work in hand"
    tasks = await waves
    await cluster.until(lambda: not cluster.ledger[decode].view.usable)
    await cluster.restart(decode)
    back = cluster.ledger[decode].view
    await cluster.until(lambda: back.usable and back.reporting)

    tasks += await send_wave(cluster, draw_wave(wish, 2))
    replies = await asyncio.gather(*tasks)

    for reply in replies:
        reply.check()  # every token, and never a silent end
    check_ends(cluster, replies)
    check_nothing_leaks(cluster, replies)
    assert cluster.legs(decode) > 0, "the engine that came back works again"
    await check_conservation(cluster, replies)
    await cluster.check_quiet()


def check_ends(cluster, replies) -> None:
    ends = Counter(reply.outcome for reply in replies)
    assert set(ends) <= {"finished", "failed", "http_502", "http_503"}
    assert sum(ends.values()) == 3 * PER_WAVE
    # Only what ran on a dead engine can have been lost, and what had not begun was moved.
    in_hand = sum(engine.backend.metrics.finished["error"] for engine in cluster.dead)
    assert 3 * PER_WAVE - ends["finished"] <= in_hand
    routes = Counter(reply.route for reply in replies if reply.outcome == "finished")
    assert routes["deflected"] > 0
    assert routes["prefill"] > 0
    for reply in replies:
        if reply.usage is not None:
            assert reply.usage["completion_tokens"] == reply.wish.output_tokens


def check_nothing_leaks(cluster, replies) -> None:
    forbidden = cluster.addresses()
    for reply in replies:
        for name, value in reply.headers.items():
            assert not forbidden.search(value), f"{name}: {value}"
        if reply.error is not None:
            assert not forbidden.search(str(reply.error)), reply.error
            assert reply.headers["x-request-id"] == reply.request_id


async def check_conservation(cluster, replies) -> None:
    """The client, the dispatcher and the metrics page have counted the same."""
    ends = Counter(reply.outcome for reply in replies)
    lost = len(replies) - ends["finished"]
    await cluster.until(lambda: not cluster.server.shell.live)
    counts = cluster.counts
    assert cluster.server.shell.dispatcher.arrived == len(replies)
    assert sum(counts.values()) == len(replies)
    assert counts["FINISHED"] == ends["finished"]
    assert counts["FAILED"] + counts["REJECTED"] == lost
    page = await cluster.metrics()
    by_end: Counter[str] = Counter()
    by_route: Counter[str] = Counter()
    for name, value in page.items():
        if name.startswith("spillway_requests_total"):
            labels = name.partition("{")[2]
            by_end[labels.partition('outcome="')[2].partition('"')[0]] += value
            if 'outcome="finished"' in labels:
                by_route[labels.partition('route="')[2].partition('"')[0]] += value
    assert by_end["finished"] == ends["finished"]
    assert by_end["failed"] + by_end["rejected"] == lost
    assert sum(by_end.values()) == len(replies)
    assert by_route == Counter(r.route for r in replies if r.outcome == "finished")
    begun = sum(reply.status == 200 for reply in replies)
    counted = [v for k, v in page.items() if k.startswith("spillway_ttft_seconds_count{")]
    assert sum(counted) == begun
    decisions = sum(v for k, v in page.items() if k.startswith("spillway_decisions_total"))
    assert decisions >= len(replies), "each request was decided, some again after a failed leg"
    assert page["spillway_policy_failures_total"] == 0
    assert page["spillway_inflight"] == 0
