"""What a router needs to know of a running vLLM cluster, as its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spillway.core.types import ChunkMode, Role
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import BLOCK_TOKENS
from spillway.wire.config import (
    ClassConfig,
    ClusterConfig,
    DecodeNode,
    NodeDefaults,
    NodesConfig,
    PolicyConfig,
    PrefillNode,
    RouterConfig,
)

# NIXL over loopback, all on shared cores; the base is the two or three decode steps that a pulled
# request waits for before its first token.
LINK_BYTES_PER_S = 200e6
LINK_BASE_S = 0.05


def router_config(
    cluster: VllmCluster,
    policy: str,
    *,
    port: int = 0,
    slo_ttft_s: float = 1.0,
    slo_tbt_s: float = 0.06,
    urls: Mapping[str, str] = MappingProxyType({}),
) -> ClusterConfig:
    """Return the configuration of a router in front of the cluster.

    urls: by node name, of what stands before a node; the node's own otherwise.
    """
    plan = cluster.plan
    prefill = [
        PrefillNode(
            url=urls.get(node.name, node.url), name=node.name, report_url=node.report_url or None
        )
        for node in cluster.of_role(Role.PREFILL)
    ]
    decode = [
        DecodeNode(
            url=urls.get(node.name, node.url), name=node.name, report_url=node.report_url or None
        )
        for node in cluster.of_role(Role.DECODE)
    ]
    return ClusterConfig(
        nodes=NodesConfig(prefill=prefill, decode=decode),
        router=RouterConfig(port=port, kv_lease_s=plan.lease_s, kv_block_tokens=BLOCK_TOKENS),
        defaults=NodeDefaults(
            profile=str(plan.profile_path),
            kv_capacity_tokens=plan.kv_capacity_tokens,
            link_bytes_per_s=LINK_BYTES_PER_S,
            link_base_s=LINK_BASE_S,
            step_tokens_max=plan.step_tokens_max,
            chunk_mode=ChunkMode.STATIC if plan.plugin is None else ChunkMode.ENGINE,
            chunk_tokens_max=plan.step_tokens_max,
            seqs_max=plan.seqs_max,
        ),
        policy=PolicyConfig(name=policy),
        classes={"default": ClassConfig(ttft_s=slo_ttft_s, tbt_s=slo_tbt_s)},
    )
