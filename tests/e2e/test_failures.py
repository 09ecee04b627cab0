"""What becomes of a request when a node fails it, leg by leg, and when its client leaves."""

from __future__ import annotations

import asyncio

import pytest

from spillway.core.policies import build_policy
from spillway.core.types import ChunkMode
from spillway.router.http_client import UpstreamConnection
from spillway.router.pool import NodePool
from spillway.wire.faketext import expected_token, prompt_digest

# Only a leg itself can tell the router of a dead node: nobody else asks in time.
DEAF = {"health_interval_s": 60.0, "report_retry_first_s": 60.0, "report_retry_max_s": 60.0}
SLOW_LINK = {"link_bytes_per_s": 1e8}  # a prompt of 5000 tokens takes 5 s


def deflect_everything():
    return build_policy("threshold", {"prompt_tokens_max": 1_000_000})


async def refuse_at_next_leg(cluster, name: str) -> None:
    """Kill an engine so that the router has dropped its idle connections but does not know."""
    await cluster.kill(name)
    pool = cluster.server.shell.pools[name]
    await cluster.until(lambda: pool.idle_conns == 0)
    assert cluster.ledger[name].view.usable


async def test_refused_decode_leg_takes_its_kv_to_another_decode_node(cluster, wish):
    await cluster.start("p0 d0 d1", policy="round-robin", **DEAF)
    await refuse_at_next_leg(cluster, "d0")

    replies = [await cluster.ask(wish(seed=seed, stream=seed % 2 == 0)) for seed in range(4)]

    assert [reply.outcome for reply in replies] == ["finished"] * 4
    assert not cluster.ledger["d0"].view.usable, "the refusal was taken for what it says"
    assert cluster.legs("p0") == 4, "no prefill was redone"
    assert cluster.legs("d1") == 4
    dropped = cluster.engines["p0"].backend.metrics.dropped
    assert dropped["unknown_kv"] == dropped["kv_expired"] == 0, "the same KV was pulled, once"
    [only] = await cluster.decisions(replies[0].request_id)
    assert only["decision"]["route"] == "prefill"
    await cluster.check_quiet()


@pytest.mark.slow
async def test_dead_prefill_leg_moves_to_the_other_prefill_node(cluster, wish):
    await cluster.start("p0 p1 d0", policy="round-robin", engine={"time_scale": 0.1})
    tasks = [cluster.send(wish(prompt_tokens=1500, seed=seed)) for seed in range(6)]
    await cluster.until(lambda: cluster.flights("p0") == 3)

    await cluster.kill("p0")
    replies = await asyncio.gather(*tasks)

    for reply in replies:
        reply.check()
        assert (reply.outcome, reply.route) == ("finished", "prefill")
    assert cluster.legs("p1") == 6
    decided = [len(await cluster.decisions(reply.request_id)) for reply in replies]
    assert sorted(decided) == [1, 1, 1, 2, 2, 2], "what died was decided again"
    await cluster.check_quiet()


@pytest.mark.slow
async def test_dead_prefill_leg_is_deflected_when_there_is_no_other_prefill_node(cluster, wish):
    await cluster.start("p0 d0", policy="least-loaded", engine={"time_scale": 0.1})
    task = cluster.send(wish(prompt_tokens=1500))
    await cluster.until(lambda: cluster.flights("p0") == 1)

    await cluster.kill("p0")
    reply = await task

    reply.check()
    assert (reply.outcome, reply.route, reply.reason) == ("finished", "deflected", "prefill_down")
    await cluster.check_quiet()


@pytest.mark.parametrize(
    "decode",
    [
        "d0",
        "d0 d1",
    ],
)
async def test_kv_lost_with_its_prefill_node_is_prefilled_again(cluster, wish, decode):
    """The decode node that could not pull it is not to blame, and may be the only one."""
    await cluster.start(f"p0 p1 {decode}", policy="round-robin", by_name={"p0": SLOW_LINK})
    task = cluster.send(wish(prompt_tokens=5000))
    await cluster.until(lambda: cluster.legs(*decode.split()) == 1)  # it pulls, for seconds

    await cluster.kill("p0")
    reply = await task

    reply.check()
    assert (reply.outcome, reply.route) == ("finished", "prefill")
    assert cluster.legs("p1") == 1
    await cluster.check_quiet()


async def test_all_prefill_nodes_down_deflects_what_is_safe(cluster, wish):
    await cluster.start(policy="round-robin")
    await cluster.kill("p0")
    await cluster.kill("p1")
    await cluster.until(lambda: not cluster.ledger["p1"].view.usable)

    replies = await asyncio.gather(*(cluster.ask(wish(seed=seed)) for seed in range(10)))

    for reply in replies:
        reply.check()
        assert reply.outcome == "finished"
        assert (reply.route, reply.reason) == ("deflected", "prefill_down")
    await cluster.check_quiet()


async def test_all_prefill_nodes_down_and_nothing_safe_is_503(cluster, wish):
    await cluster.start(engine={"stock": True}, spec={"chunk_mode": ChunkMode.UNKNOWN})
    await cluster.kill("p0")
    await cluster.kill("p1")
    await cluster.until(lambda: not cluster.ledger["p1"].view.usable)

    reply = await cluster.ask(wish())

    check_503(cluster, reply)
    assert cluster.legs("d0", "d1") == 0
    assert (await cluster.page("/health"))[0] == 503


@pytest.mark.parametrize("policy", ["round-robin", "headroom", "kairos-paper"])
async def test_all_decode_nodes_down_is_503(cluster, wish, policy):
    await cluster.start(policy=policy)
    await cluster.kill("d0")
    await cluster.kill("d1")
    await cluster.until(lambda: not cluster.ledger["d1"].view.usable)

    reply = await cluster.ask(wish(stream=True))

    check_503(cluster, reply)
    assert cluster.counts["REJECTED"] == 1
    assert cluster.legs("p0", "p1") == 0, "nothing was prefilled in vain"


@pytest.mark.slow
async def test_all_decode_nodes_refusing_is_503_after_the_prefill(cluster, wish):
    await cluster.start("p0 d0", policy="round-robin", **DEAF)
    await refuse_at_next_leg(cluster, "d0")

    reply = await cluster.ask(wish(stream=True))

    check_503(cluster, reply)
    assert cluster.counts["FAILED"] == 1
    await cluster.check_quiet()


def held_and_freed(cluster) -> tuple[int, int, int]:
    """Return how often KV of p0 went at its lease's end, on a router's word, and on a wrong one."""
    dropped = cluster.engines["p0"].backend.metrics.dropped
    return dropped["kv_expired"], dropped["kv_released"], dropped["release_unknown"]


async def test_kv_that_no_decode_node_took_is_freed_at_once(cluster, wish):
    await cluster.start("p0 d0", policy="round-robin", engine={"lease_s": 60.0}, **DEAF)
    await refuse_at_next_leg(cluster, "d0")

    reply = await cluster.ask(wish(stream=True))

    check_503(cluster, reply)
    await cluster.check_quiet()
    assert held_and_freed(cluster) == (0, 1, 0)


async def test_kv_of_a_client_that_left_between_the_legs_is_freed_at_once(
    cluster, wish, monkeypatch
):
    await cluster.start("p0 d0", policy="round-robin", engine={"lease_s": 60.0}, **DEAF)
    shell, begin = cluster.server.shell, NodePool._begin

    def begun(pool, sink, head, body, may_resend):
        """Connections to d0 never stand."""
        if pool is not shell.pools["d0"]:
            return begin(pool, sink, head, body, may_resend)
        conn = UpstreamConnection(pool)
        conn.begin(sink, head, body, may_resend=may_resend)
        return conn

    monkeypatch.setattr(NodePool, "_begin", begun)
    task = cluster.send(wish(stream=True))
    await cluster.until(lambda: any(exchange.kv_params for exchange in shell.live.values()))
    assert cluster.engines["p0"].backend.pace.state().kv_used_tokens > 0

    task.cancel()

    await cluster.check_quiet()
    assert held_and_freed(cluster) == (0, 1, 0)
    assert cluster.legs("d0") == 0


def check_503(cluster, reply) -> None:
    """An OpenAI error that says when to try again, and nothing of the cluster."""
    reply.check()
    assert reply.outcome == "http_503"
    assert set(reply.error) == {"message", "type", "param", "code"}
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["retry-after"]) >= 1
    assert not cluster.addresses().search(str(reply.error))


@pytest.mark.parametrize("policy", ["round-robin", "deflect"])
async def test_stream_broken_after_the_first_byte_ends_with_an_error_frame(cluster, wish, policy):
    chosen = deflect_everything() if policy == "deflect" else policy
    await cluster.start("p0 d0 d1", policy=chosen)
    first = asyncio.Event()
    task = cluster.send(wish(output_tokens=5000), first=first)
    await first.wait()
    (name,) = [name for name in ("d0", "d1") if cluster.flights(name)]

    await cluster.kill(name)
    reply = await task

    reply.check()
    assert reply.outcome == "failed"
    assert 0 < len(reply.texts) < 5000
    assert not reply.done, "a broken stream must not look finished"
    assert not cluster.addresses().search(str(reply.error))
    assert cluster.counts["FAILED"] == 1
    (other,) = {"d0", "d1"} - {name}
    assert cluster.legs(other) == 0, "nothing is retried once tokens went out"
    await cluster.check_quiet()


async def test_answer_without_a_stream_is_moved_when_its_decode_node_dies(cluster, wish):
    await cluster.start("p0 d0 d1", policy="round-robin")
    task = cluster.send(wish(output_tokens=300, stream=False))
    await cluster.until(lambda: cluster.flights("d0") + cluster.flights("d1"))
    (name,) = [name for name in ("d0", "d1") if cluster.flights(name)]

    await cluster.kill(name)
    reply = await task

    reply.check()
    assert reply.outcome == "finished"
    assert cluster.legs("p0") == 2, "the first KV was gone with the node that pulled it"
    await cluster.check_quiet()


# --- clients that leave -----------------------------------------------------------------------


async def leave(cluster, task) -> None:
    """Let the client go, and see that the request is over at once and everywhere."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await cluster.until(lambda: cluster.counts["CANCELLED"] == 1)
    page = await cluster.metrics()
    assert sum(v for k, v in page.items() if 'outcome="cancelled"' in k) == 1
    await cluster.until(lambda: not any(map(cluster.flights, cluster.engines)))
    await cluster.check_quiet()


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_while_the_prompt_is_prefilled(cluster, wish, stream):
    await cluster.start("p0 d0", policy="round-robin", engine={"time_scale": 0.02})
    task = cluster.send(wish(prompt_tokens=2000, stream=stream))
    await cluster.until(lambda: cluster.flights("p0"))
    assert cluster.counts["PREFILLING"] == 1
    await leave(cluster, task)
    assert cluster.legs("d0") == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_while_the_kv_moves(cluster, wish, stream):
    await cluster.start("p0 d0", policy="round-robin", by_name={"p0": SLOW_LINK})
    task = cluster.send(wish(prompt_tokens=5000, stream=stream))
    await cluster.until(lambda: cluster.legs("d0") == 1)
    assert cluster.counts["TRANSFERRING"] == 1
    await leave(cluster, task)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_while_the_answer_is_written(cluster, wish, stream):
    await cluster.start("p0 d0", policy="round-robin")
    task = cluster.send(wish(output_tokens=5000, stream=stream))
    await cluster.until(lambda: cluster.flights("d0"))
    if stream:
        await cluster.until(lambda: cluster.counts["DECODING"] == 1)
    await leave(cluster, task)


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_a_deflected_prompt(cluster, wish, stream):
    await cluster.start("p0 d0", policy=deflect_everything(), engine={"time_scale": 0.02})
    task = cluster.send(wish(prompt_tokens=2000, stream=stream))
    await cluster.until(lambda: cluster.flights("d0"))
    assert cluster.counts["DEFLECTED"] == 1
    await leave(cluster, task)
    assert cluster.legs("p0") == 0


async def test_leaving_while_a_leg_is_retried(cluster, wish):
    await cluster.start("p0 p1 d0", policy="round-robin", engine={"time_scale": 0.02})
    task = cluster.send(wish(prompt_tokens=2000))
    await cluster.until(lambda: cluster.flights("p0") + cluster.flights("p1"))
    (name,) = [name for name in ("p0", "p1") if cluster.flights(name)]
    (other,) = {"p0", "p1"} - {name}
    await cluster.kill(name)
    await cluster.until(lambda: cluster.flights(other))
    await leave(cluster, task)


def test_a_wish_expects_what_the_engines_write(wish):
    """The checks of this folder are only as good as what they expect."""
    one = wish("chat", prompt_tokens=9, output_tokens=2)
    told = "".join(one.body["messages"][0]["content"])
    asked = one.body["messages"][1]["content"][0]["text"]
    digest = prompt_digest(f"{told}\n{asked}")
    assert one.expected == [expected_token(digest, 0), expected_token(digest, 1)]
