"""What the router believes of real engines, and what they say: the two agree once all is quiet.

The load mixes both paths, streams and whole answers, text and token ids, and clients that leave.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from spillway.router.app import Server
from spillway.router.intake import ReportStream
from spillway.vllmcluster.cluster import VllmCluster
from vllmdrive import (
    Answer,
    ask,
    chat,
    completion,
    listening,
    router_for,
    token_ids,
    until,
    url_of,
    words,
)

PLAN: dict[str, Any] = {"plugin": {}}
SHORT_DEFLECTED = ("threshold", {"backlog_tokens_min": 0, "prompt_tokens_max": 500})
REQUESTS = 24


def request_body(at: int) -> dict[str, Any]:
    tokens = 60 + 137 * (at * 5 % REQUESTS) // 2
    stream = {"stream": at % 3 != 0}
    if at % 4 == 0:
        return chat(words(tokens, at), 20 + at, **stream)
    prompt = token_ids(tokens, at) if at % 2 else words(tokens, at)
    return completion(prompt, 20 + at, **stream)


async def load(session: aiohttp.ClientSession, router: Server) -> list[Answer]:
    """Run the mixed load; every sixth client leaves soon."""

    async def one(at: int) -> Answer | None:
        await asyncio.sleep(0.05 * at)
        asking = asyncio.create_task(ask(session, url_of(router), request_body(at)))
        if at % 6 == 5:
            await asyncio.sleep(0.1)
            asking.cancel()
            await asyncio.wait([asking])
            return None if asking.cancelled() else asking.result()
        return await asking

    answers = await asyncio.gather(*(one(at) for at in range(REQUESTS)))
    return [answer for answer in answers if answer is not None]


async def agree(
    session: aiohttp.ClientSession, cluster: VllmCluster, router: Server, answers: list[Answer]
) -> None:
    """Check that all was served, and that ledger and engines say the same when it is over."""
    assert len(answers) >= REQUESTS - REQUESTS // 6
    assert {answer.status for answer in answers} == {200}
    assert {answer.route for answer in answers} == {"prefill", "deflected"}
    await until(lambda: not router.shell.live)
    ledger = router.shell.dispatcher.ledger
    sent = router.shell.dispatcher.ledger.nodes

    def quiet() -> bool:
        views = [ledger.nodes[name].view for name in cluster.nodes]
        return all(
            view.reporting
            and (view.backlog_prompts, view.backlog_tokens, view.decode_seqs) == (0, 0, 0)
            and view.kv_used_tokens == 0
            for view in views
        )

    await until(quiet)
    assert all(sent[name].outstanding == 0 for name in cluster.nodes)
    seen = {}
    for name in cluster.nodes:
        async with listening(session, cluster, name) as heard:
            seen[name] = heard.last.dispatch_seen[router.shell.router_id]
            assert heard.last.kv_capacity_tokens == ledger.nodes[name].view.kv_capacity_tokens
            assert (heard.last.errors, heard.last.fault) == (0, "")
    # The last dispatch of all went to one of the nodes, and each knows those meant for it.
    assert max(seen.values()) == next(router.shell.dispatcher._dispatch_ids) - 1
    assert not router.broken.done()


async def test_ledger_and_engines_agree_after_a_mixed_load(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    async with router_for(cluster, SHORT_DEFLECTED) as router:
        answers = await load(session, router)
        await agree(session, cluster, router, answers)
        assert not router.shell.metrics.reports_dropped


async def test_they_agree_though_reports_are_lost_and_reordered(
    cluster: VllmCluster, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = ReportStream._take
    held: list[tuple[ReportStream, bytes]] = []
    arrived = lost = 0

    def unreliable(stream: ReportStream, line: bytes) -> None:
        """Lose every third report; let every fifth overtake the one before it."""
        nonlocal arrived, lost
        arrived += 1
        if arrived % 3 == 0:
            lost += 1
            return
        if arrived % 5 == 0:
            held.append((stream, line))
            return
        take(stream, line)
        while held:
            take(*held.pop())

    monkeypatch.setattr(ReportStream, "_take", unreliable)
    async with router_for(cluster, SHORT_DEFLECTED) as router:
        answers = await load(session, router)
        await agree(session, cluster, router, answers)
        dropped = router.shell.metrics.reports_dropped
        assert lost > 10
        assert sum(count for (_, kind), count in dropped.items() if kind == "out_of_order") > 0
