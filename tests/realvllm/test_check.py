"""`spillway check` on real stock engines: what their pages tell, and that each pair hands KV over.

The engines run with vLLM's development pages, where their scheduler's settings can be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from spillway.core.stock import ExpectedBatch
from spillway.core.types import ChunkMode
from spillway.router.dial import dial
from spillway.router.pairs import try_every_pair
from spillway.router.settings import RouterSettings
from spillway.router.verify import judge
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import BLOCK_TOKENS, MODEL_NAME
from spillway.vllmcluster.routing import router_config
from spillway.wire.checks import Level

STEP_TOKENS = 512
PLAN: dict[str, Any] = {"step_tokens_max": STEP_TOKENS}
SETTINGS = RouterSettings(kv_block_tokens=BLOCK_TOKENS)
BATCH = ExpectedBatch(decode_seqs=16, context_tokens=500, prompt_tokens=4000)
TBT_S = 1.0  # so loose that no chunk of these engines misses it


@pytest.fixture(autouse=True, scope="module")
def _development_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        yield


async def test_stock_engines_tell_what_they_are(cluster: VllmCluster) -> None:
    nodes = router_config(cluster, "headroom").build_nodes()
    checks, findings = judge(await dial(nodes, SETTINGS), BATCH, TBT_S, BLOCK_TOKENS)
    assert [check.node_id for check in checks] == ["p0", "d0"]
    assert [check.kv_role for check in checks] == ["kv_producer", "kv_consumer"]
    for check in checks:
        assert check.reachable
        assert check.version == checks[0].version != ""
        assert check.models == (MODEL_NAME,)
        assert check.kv_connector == "NixlConnector"
        assert check.kv_block_tokens == BLOCK_TOKENS
        assert check.context_tokens_max == cluster.plan.context_tokens_max
        assert check.reports == "none"
        # One block of what the page tells is vLLM's own.
        assert check.kv_capacity_tokens == cluster.plan.kv_capacity_tokens + BLOCK_TOKENS
    chunks = checks[1].chunks
    assert chunks is not None
    assert (chunks.mode, chunks.chunk_tokens) == (ChunkMode.STATIC, STEP_TOKENS)
    assert chunks.source == "/server_info"
    assert [(one.level, one.node_id) for one in findings] == [(Level.WARNING, "d0")]
    assert "--long-prefill-token-threshold" in findings[0].remedy


async def test_a_wrong_configuration_is_found(cluster: VllmCluster) -> None:
    prefill, decode = router_config(cluster, "headroom").build_nodes()
    swapped = [prefill._replace(url=decode.url), decode._replace(url=prefill.url)]
    _, findings = judge(await dial(swapped, SETTINGS), BATCH, TBT_S, 16)
    errors = " | ".join(f"{one.node_id} {one.text}" for one in findings)
    assert "p0 is configured as a prefill node, but was started with kv_consumer" in errors
    assert "d0 is configured as a decode node, but was started with kv_producer" in errors
    assert f"p0 has KV blocks of {BLOCK_TOKENS} tokens; configured are 16" in errors


async def test_every_pair_hands_kv_over(cluster: VllmCluster) -> None:
    nodes = router_config(cluster, "headroom").build_nodes()
    async with asyncio.timeout(120):
        assert await try_every_pair(await dial(nodes, SETTINGS), SETTINGS) == []
