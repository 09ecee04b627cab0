"""Events that meet: refusals in a burst, KV that is gone, books that differ from what is true."""

from __future__ import annotations

import asyncio

import pytest

from spillway.core.policies import build_policy

DEAF = {"health_interval_s": 60.0, "report_retry_first_s": 60.0, "report_retry_max_s": 60.0}


class LoopingDecode:
    """Prefill by a policy, decode where told: always the first usable node."""

    name = "first-decode"

    def __init__(self) -> None:
        self._policy = build_policy("round-robin")

    def decide(self, request, cluster):
        return self._policy.decide(request, cluster)

    def pick_decode(self, request, cluster):
        return next((node.node_id for node in cluster.decode if node.usable), None)


class BrokenPick(LoopingDecode):
    def pick_decode(self, request, cluster):
        if cluster.now_s and self.armed:
            raise ZeroDivisionError("a bug in a policy")
        return super().pick_decode(request, cluster)

    armed = False


async def test_refused_burst_redoes_no_prefill(cluster, wish):
    """All legs that were connecting when the first one is refused keep their KV, too."""
    await cluster.start("p0 d0 d1", policy=LoopingDecode(), **DEAF)
    await cluster.kill("d0")
    pool = cluster.server.shell.pools["d0"]
    await cluster.until(lambda: pool.idle_conns == 0)

    replies = await asyncio.gather(*(cluster.ask(wish(seed=seed)) for seed in range(20)))

    assert {reply.outcome for reply in replies} == {"finished"}
    assert cluster.legs("p0") == 20, "a refused connection cannot have consumed KV"


async def test_round_robin_deals_a_burst_evenly_to_decode_nodes(cluster, wish):
    await cluster.start("p0 d0 d1", policy="round-robin")
    await asyncio.gather(*(cluster.ask(wish(seed=seed)) for seed in range(40)))
    assert min(cluster.legs("d0"), cluster.legs("d1")) >= 10


async def test_a_policy_that_fails_to_pick_a_decode_node_loses_no_request(cluster, wish):
    policy = BrokenPick()
    await cluster.start("p0 d0 d1", policy=policy)
    policy.armed = True
    async with asyncio.timeout(2.0):
        reply = await cluster.ask(wish())
    assert reply.outcome in ("finished", "http_502", "http_503")


@pytest.mark.parametrize("stream", [True, False])
async def test_the_book_counts_each_stream_once(cluster, wish, stream):
    """A report that shows a pulled request replaces what was booked for it."""
    await cluster.start("p0 d0", policy="round-robin")
    tasks = [
        cluster.send(wish(output_tokens=2000, stream=stream, seed=seed)) for seed in range(4)
    ]
    state = cluster.engines["d0"].backend.pace.state
    await cluster.until(lambda: state().decode_seqs == 4)
    view = cluster.ledger["d0"].view
    heard_at_s = view.heard_at_s
    await cluster.until(lambda: view.heard_at_s > heard_at_s + 0.1)
    try:
        assert view.decode_seqs == state().decode_seqs == 4
    finally:
        for task in tasks:
            task.cancel()


async def test_stop_ends_streams_with_an_error_frame(cluster, wish):
    await cluster.start("p0 d0")
    first = asyncio.Event()
    task = cluster.send(wish(output_tokens=5000), first=first)
    await first.wait()
    await cluster.server.close()
    reply = await task
    reply.check()
    assert reply.outcome == "failed"
