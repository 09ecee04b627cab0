"""A real prefill engine frees KV that a router gives up, ten minutes before its lease ends."""

from __future__ import annotations

from typing import Any

import aiohttp

from spillway.vllmcluster.cluster import VllmCluster
from vllmdrive import (
    PREFILL_ALL,
    all_kv_free,
    ask,
    completion,
    listening,
    router_for,
    token_ids,
    until,
    url_of,
)

PLAN: dict[str, Any] = {"dtype": "float32", "lease_s": 600, "plugin": {}}
BODY = completion(token_ids(700, 5), 8)


async def all_well(session: aiohttp.ClientSession, cluster: VllmCluster) -> None:
    """Check that every node is without KV and without a fault, and would free more."""
    await all_kv_free(session, cluster)
    for name in cluster.nodes:
        async with listening(session, cluster, name) as heard:
            assert (heard.last.errors, heard.last.fault) == (0, "")
            assert heard.last.releases


async def test_kv_that_is_given_up_is_freed_and_the_engine_serves_on(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    # The router takes every KV for too old to be fetched, and so gives it up.
    async with router_for(cluster, PREFILL_ALL, kv_lease_s=1e-9) as router:
        answer = await ask(session, url_of(router), BODY)
        assert answer.status == 502
        releases = router.shell.metrics.releases
        await until(lambda: releases["p0", "taken"] == 3)
        assert set(releases) == {("p0", "taken")}
        await all_well(session, cluster)
    async with router_for(cluster, PREFILL_ALL) as router:
        for _ in range(3):
            answer = await ask(session, url_of(router), BODY)
            assert (answer.status, answer.route) == (200, "prefill")
        await all_well(session, cluster)
        assert not router.shell.metrics.releases
