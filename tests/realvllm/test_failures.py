"""What a client gets when real engines fail, and that they get their KV blocks back.

A request that no token has been sent of is served all the same, with the same tokens; one that has
begun ends with an error that cannot be taken for its end.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest

from spillway.router.app import Server
from spillway.vllmcluster.cluster import VllmCluster
from vllmdrive import (
    DEFLECT_ALL,
    PREFILL_ALL,
    Answer,
    Between,
    all_kv_free,
    ask,
    completion,
    router_for,
    token_ids,
    until,
    url_of,
)

PLAN: dict[str, Any] = {"dtype": "float32", "lease_s": 6, "plugin": {}}
PROMPT = token_ids(700, 5)
BODY = completion(PROMPT, 8, logprobs=1)


async def right(session: aiohttp.ClientSession, cluster: VllmCluster) -> Answer:
    """Return what the decode node answers when nothing stands between."""
    answer = await ask(session, cluster.nodes["d0"].url, BODY)
    assert answer.status == 200
    return answer


def same(answer: Answer, expected: Answer) -> bool:
    return answer.text == expected.text and answer.logprobs == pytest.approx(
        expected.logprobs, abs=1e-3
    )


def between_legs(router: Server, act: Callable[[], None]) -> None:
    """Do something once, after the first prefill leg's answer and before its decode leg."""
    shell = router.shell
    prefilled = shell.prefilled

    def first(exchange: Any, kv_params: bytes, prompt_tokens: int) -> None:
        shell.prefilled = prefilled  # type: ignore[method-assign]
        act()
        prefilled(exchange, kv_params, prompt_tokens)

    shell.prefilled = first  # type: ignore[method-assign]


async def back(cluster: VllmCluster, router: Server, name: str) -> None:
    """Start a node again and wait until the router uses it."""
    await cluster.restart(name)
    await until(lambda: router.health.nodes[name].is_up)
    await until(lambda: name in router.shell.takes_orders)


async def test_a_prefill_node_that_dies_between_the_legs(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    expected = await right(session, cluster)
    async with router_for(cluster, PREFILL_ALL) as router:
        url = url_of(router)
        pid = cluster.nodes["p0"].pid
        between_legs(router, lambda: os.killpg(pid, signal.SIGKILL))
        answer = await ask(session, url, BODY)
        assert (answer.status, answer.route) == (200, "deflected")
        assert same(answer, expected)
        await cluster.kill("p0")
        await back(cluster, router, "p0")
        answer = await ask(session, url, BODY)
        assert (answer.status, answer.route) == (200, "prefill")
        assert same(answer, expected)
    await all_kv_free(session, cluster)


async def test_a_decode_node_that_dies_in_the_middle_of_a_stream(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    expected = await right(session, cluster)
    async with router_for(cluster, PREFILL_ALL) as router:
        url = url_of(router)
        pid = cluster.nodes["d0"].pid

        def die(answer: Answer) -> None:
            if answer.events == 5:
                os.killpg(pid, signal.SIGKILL)

        long = completion(PROMPT, 2000, stream=True)
        answer = await ask(session, url, long, on_event=die)
        assert answer.status == 200
        assert answer.events >= 5
        assert not answer.done
        assert answer.error is not None or answer.broken
        await cluster.kill("d0")
        refused = await ask(session, url, BODY)
        assert refused.status == 503
        assert refused.error is not None
        await back(cluster, router, "d0")
        assert same(await ask(session, url, BODY), expected)
    await all_kv_free(session, cluster)


@pytest.mark.parametrize("policy", [PREFILL_ALL, DEFLECT_ALL], ids=["prefill", "deflected"])
@pytest.mark.parametrize("moment", ["prompt", "stream"])
async def test_a_client_that_leaves(
    cluster: VllmCluster,
    session: aiohttp.ClientSession,
    policy: tuple[str, dict[str, Any]],
    moment: str,
) -> None:
    async with router_for(cluster, policy) as router:
        body = completion(token_ids(4000, 6), 2000, stream=True)
        begun = asyncio.Event()
        asking = asyncio.create_task(
            ask(session, url_of(router), body, on_event=lambda answer: begun.set())
        )
        if moment == "stream":
            await begun.wait()
        else:
            await until(lambda: any(one.leg is not None for one in router.shell.live.values()))
        asking.cancel()
        await asyncio.wait([asking])
        await until(lambda: not router.shell.live)
        await all_kv_free(session, cluster)


async def test_kv_params_of_a_client_never_reach_an_engine(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    kv = {"do_remote_prefill": True, "remote_engine_id": "nobody", "remote_block_ids": [[1]]}
    async with router_for(cluster, PREFILL_ALL) as router:
        answer = await ask(session, url_of(router), {**BODY, "kv_transfer_params": kv})
    assert answer.status == 400
    assert answer.error is not None
    assert answer.error["param"] == "kv_transfer_params"
    await all_kv_free(session, cluster)


def unknown_engine(params: dict[str, Any]) -> None:
    params["remote_engine_id"] = "00000000-0000-0000-0000-000000000000"


def no_blocks(params: dict[str, Any]) -> None:
    del params["remote_block_ids"]


def too_few_blocks(params: dict[str, Any]) -> None:
    params["remote_block_ids"] = [params["remote_block_ids"][0][:-1]]


def no_host(params: dict[str, Any]) -> None:
    params["remote_host"] = None


def another_prompts(params: dict[str, Any]) -> None:
    params["remote_num_tokens"] = 20


@pytest.mark.parametrize(
    "fault", [unknown_engine, no_blocks, too_few_blocks, no_host, another_prompts]
)
async def test_a_wrong_handover_kills_no_engine_and_loses_no_request(
    cluster: VllmCluster, session: aiohttp.ClientSession, fault: Callable[[dict[str, Any]], None]
) -> None:
    """vLLM 0.32 dies of three of these and hangs on one."""
    expected = await right(session, cluster)
    async with Between(session, cluster.nodes["p0"].url).running() as prefill:

        def spoil(answer: dict[str, Any]) -> None:
            prefill.spoil = lambda answer: None
            fault(answer["kv_transfer_params"])

        prefill.spoil = spoil
        urls = {"p0": prefill.url}
        async with router_for(cluster, PREFILL_ALL, urls, kv_block_tokens=128) as router:
            answer = await ask(session, url_of(router), BODY)
            assert answer.status == 200
            assert same(answer, expected)
            answer = await ask(session, url_of(router), BODY)
            assert (answer.status, answer.route) == (200, "prefill")
            assert same(answer, expected)
    assert not any(node.ended.is_set() for node in cluster.nodes.values())
    await all_kv_free(session, cluster)  # the lease of what was never fetched runs out


async def test_kv_that_a_decode_node_may_have_fetched_is_never_used_again(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    expected = await right(session, cluster)
    async with Between(session, cluster.nodes["d0"].url).running() as decode:
        urls = {"d0": decode.url}
        async with router_for(cluster, PREFILL_ALL, urls) as router:
            decode.cut = True
            failed = await ask(session, url_of(router), BODY)
            decode.cut = False
            answer = await ask(session, url_of(router), BODY)
    assert failed.status in (502, 503)
    assert same(answer, expected)
    sources = [body["kv_transfer_params"]["remote_request_id"] for body in decode.asked]
    assert len(sources) > 2
    assert len(set(sources)) == len(sources)
    await all_kv_free(session, cluster)


async def test_expired_kv_is_computed_again(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    """The time in between is the router's, whose setting says a lease far shorter than it takes."""
    async with (
        Between(session, cluster.nodes["d0"].url).running() as decode,
        router_for(cluster, PREFILL_ALL, {"d0": decode.url}, kv_lease_s=1e-9) as router,
    ):
        answer = await ask(session, url_of(router), BODY)
        assert answer.status == 502
        assert decode.asked == []  # nothing that could be stale was fetched
        assert router.shell.metrics.upstream_errors["d0", "kv_expired"] > 1
    await all_kv_free(session, cluster)
