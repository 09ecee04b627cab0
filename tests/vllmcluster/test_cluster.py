"""What the cluster of real nodes does by itself, tried on servers that stand in for nodes.

How real nodes behave is in `tests/realvllm`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from spillway.core.errors import NodeError
from spillway.core.types import Role
from spillway.vllmcluster import cluster as vllm_cluster
from spillway.vllmcluster.cluster import WARM_TRIES, VllmCluster, VllmNode
from spillway.vllmcluster.plan import VllmPlan

HANDED_OVER = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_engine_id": "e",
    "remote_block_ids": [1],
    "remote_host": "127.0.0.1",
    "remote_port": 5601,
}


SILENT = 0  # instead of a status: no answer at all


async def serve(statuses: list[int]) -> tuple[TestServer, list[int]]:
    """Return a server that answers with these statuses, then 200, and what it has answered."""
    answered: list[int] = []

    async def complete(_: web.Request) -> web.Response:
        answered.append(statuses[len(answered)] if len(answered) < len(statuses) else 200)
        if answered[-1] == SILENT:
            await asyncio.Event().wait()
        content = {"choices": [{"text": "x"}], "kv_transfer_params": HANDED_OVER}
        return web.json_response(content, status=answered[-1])

    app = web.Application()
    app.router.add_post("/v1/completions", complete)
    server = TestServer(app)
    await server.start_server()
    return server, answered


def node(name: str, role: Role, server: TestServer) -> VllmNode:
    url = str(server.make_url("")).rstrip("/")
    return VllmNode(name, role, 0, url, "", Path("log"), asyncio.Event())


@pytest.mark.parametrize("failures", [0, WARM_TRIES - 1, WARM_TRIES])
@pytest.mark.parametrize(
    ("failure", "told"), [(500, "d0 answered 500"), (SILENT, "d0 did not answer in 0.5 s")]
)
async def test_a_pair_whose_handshake_fails_or_hangs_is_warmed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, failure: int, told: str
) -> None:
    if failure == SILENT:
        monkeypatch.setattr(vllm_cluster, "WARM_S_MAX", 0.5)
    plan = VllmPlan(folder=tmp_path, python=Path("python"), prefill_count=1, decode_count=1)
    cluster = VllmCluster(plan)
    prefill, prefilled = await serve([])
    decode, decoded = await serve([failure] * failures)
    cluster.nodes = {
        "p0": node("p0", Role.PREFILL, prefill),
        "d0": node("d0", Role.DECODE, decode),
    }
    try:
        if failures < WARM_TRIES:
            await cluster.warm()
        else:
            with pytest.raises(NodeError, match=told):
                await cluster.warm()
        assert len(prefilled) == len(decoded) == min(failures + 1, WARM_TRIES)
    finally:
        await prefill.close()
        await decode.close()
