"""Events that meet: refusals in a burst, KV that is gone, books that differ from what is true."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import SSE_HEAD, FakeNode, chunk, event
from spillway.core.policies import build_policy
from spillway.core.types import Role
from spillway.router.app import serve
from spillway.router.settings import RouterSettings

# Only a leg itself can tell the router of a dead node: nobody else asks in time.
DEAF = {"health_interval_s": 60.0, "report_retry_first_s": 60.0, "report_retry_max_s": 60.0}


class BrokenPick:
    """A policy with a bug on the way from prefill to decode."""

    name = "broken-pick"

    def decide(self, request, cluster):
        return build_policy("round-robin").decide(request, cluster)

    def pick_decode(self, request, cluster):
        raise ZeroDivisionError("a bug in a policy")


@pytest.mark.slow
async def test_legs_refused_together_keep_their_kv(cluster, wish):
    await cluster.start("p0 d0 d1", policy="least-loaded", **DEAF)
    await cluster.kill("d0")
    await cluster.until(lambda: cluster.server.shell.pools["d0"].idle_conns == 0)
    # Behind a long prompt the short ones gather, to be prefilled in one step and sent on at once.
    tasks = [cluster.send(wish(prompt_tokens=12_300, seed=99))]
    await cluster.until(lambda: cluster.flights("p0"))
    tasks += [cluster.send(wish(seed=seed)) for seed in range(20)]

    replies = await asyncio.gather(*tasks)

    assert {reply.outcome for reply in replies} == {"finished"}
    assert cluster.legs("d1") == 21
    assert cluster.legs("p0") == 21, "a connection that was refused has consumed no KV"


@pytest.mark.slow
async def test_a_decode_node_that_dies_while_it_pulls_costs_one_retry(cluster, wish):
    """Its connection was used before, so the router tries it again; that finds nobody there.

    Still the request had reached the node, which may have pulled the KV: it is prefilled again.
    """
    await cluster.start("p0 d0 d1", policy="round-robin", by_name={"p0": {"link_base_s": 0.2}})
    task = cluster.send(wish(prompt_tokens=100))
    await cluster.until(lambda: cluster.legs("d0", "d1") == 1)
    (name,) = [name for name in ("d0", "d1") if cluster.legs(name)]
    assert cluster.server.shell.pools[name].reused >= 1, "a connection that health had opened"
    await cluster.until(lambda: len(cluster.engines["p0"].backend.leases) == 0)

    await cluster.kill(name)
    reply = await task

    assert reply.outcome == "finished"
    assert cluster.legs("p0") == 2
    (other,) = {"d0", "d1"} - {name}
    assert cluster.legs(other) == 1, "it was not sent after KV that is gone"


@pytest.mark.slow
async def test_round_robin_deals_a_burst_evenly_to_the_decode_nodes(cluster, wish):
    await cluster.start("p0 d0 d1", policy="round-robin")
    await asyncio.gather(*(cluster.ask(wish(prompt_tokens=1500, seed=seed)) for seed in range(20)))
    assert cluster.legs("d0") == cluster.legs("d1") == 10


async def test_a_policy_that_cannot_pick_a_decode_node_loses_no_request(cluster, wish):
    await cluster.start("p0 d0 d1", policy=BrokenPick())
    reply = await cluster.ask(wish())
    reply.check()
    assert reply.outcome == "finished"
    assert (await cluster.metrics())["spillway_policy_failures_total"] >= 1


@pytest.mark.parametrize(
    "stream",
    [True, False],
)
async def test_the_book_counts_a_pulled_request_once(cluster, wish, stream):
    """A report that shows a request replaces what was booked for it, streamed or not."""
    await cluster.start("p0 d0", policy="round-robin")
    for seed in range(4):
        cluster.send(wish(output_tokens=2000, stream=stream, seed=seed))
    state = cluster.engines["d0"].backend.pace.state
    await cluster.until(lambda: state().decode_seqs == 4)
    view = cluster.ledger["d0"].view
    since_s = view.heard_at_s
    await cluster.until(lambda: view.heard_at_s > since_s + 0.05)
    assert state().decode_seqs == 4
    assert view.decode_seqs == 4
    assert view.kv_used_tokens <= 1.1 * state().kv_used_tokens


@pytest.mark.slow
async def test_kv_promised_to_a_node_counts_until_the_node_reports_it(cluster, wish):
    await cluster.start("p0 d0", policy="round-robin", by_name={"p0": {"link_bytes_per_s": 1e8}})
    cluster.send(wish(prompt_tokens=5000))
    await cluster.until(lambda: cluster.legs("d0") == 1)
    view = cluster.ledger["d0"].view
    since_s = view.heard_at_s
    await cluster.until(lambda: view.heard_at_s > since_s)  # a report, while the KV moves
    assert cluster.engines["d0"].backend.pace.state().kv_used_tokens == 0
    assert view.kv_used_tokens == 5000
    assert view.decode_seqs == 1


async def test_stopping_tells_open_streams_that_they_are_not_complete(cluster, wish):
    await cluster.start("p0 d0")
    first = asyncio.Event()
    task = cluster.send(wish(output_tokens=5000), first=first)
    await first.wait()

    await cluster.server.close()
    reply = await task

    assert reply.outcome == "failed", "an error frame, not a connection that just ends"
    reply.check()
    await cluster.until(lambda: not cluster.flights("d0"))


async def test_stopping_leaves_nothing_running_on_engines_or_in_the_loop(cluster, wish):
    await cluster.start("p0 d0", policy="round-robin", engine={"time_scale": 0.05})
    for seed in range(6):
        cluster.send(wish(prompt_tokens=2000 if seed % 2 else 10, seed=seed, stream=seed % 3 > 0))
    await cluster.until(lambda: cluster.flights("p0") and cluster.flights("d0"))

    await cluster.server.close()

    assert not cluster.server.shell.live
    assert not cluster.server.connections
    await cluster.until(lambda: not cluster.flights("p0") and not cluster.flights("d0"))
    assert all(not node.outstanding for node in cluster.ledger.values())
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]
    assert not [name for name in names if name.startswith(("NodePool", "DecisionLog"))]


async def test_an_engine_that_dies_after_done_has_answered(wish):
    """All tokens and [DONE] came; only the framing's end is missing, which the router can add."""

    async def all_but_the_end(node, got):
        got.writer.write(SSE_HEAD + chunk(event(0)) + chunk(b"data: [DONE]\n\n"))
        await got.writer.drain()
        await asyncio.sleep(0.01)
        got.writer.transport.abort()

    prefill = await FakeNode("p0", Role.PREFILL).start()
    decode = await FakeNode("d0", Role.DECODE).start()
    decode.on_post = all_but_the_end
    nodes = [(prefill.spec, prefill.url), (decode.spec, decode.url)]
    server = await serve(
        nodes, build_policy("round-robin"), settings=RouterSettings(port=0, drain_s=0.05)
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'{"model":"m","prompt":"hello","stream":true}'
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nhost: router\r\ncontent-length: %d\r\n\r\n"
            % len(body)
        )
        writer.write(body)
        async with asyncio.timeout(2.0):
            answer = await reader.readuntil(b"\r\n0\r\n\r\n")
        assert answer.count(b"[DONE]") == 1
        assert b'"error"' not in answer
        assert server.shell.metrics.requests == {("prefill", "finished"): 1}
    finally:
        writer.close()
        await server.close()
        await prefill.stop()
        await decode.stop()
