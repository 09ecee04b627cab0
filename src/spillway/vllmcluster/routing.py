"""What a router needs to know of a running vLLM cluster, as its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from spillway.core.types import ChunkMode, Role
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import BLOCK_TOKENS
from spillway.wire.config import ClassConfig, ClusterConfig, PolicyConfig
from spillway.wire.nodesconfig import DecodeNode, NodeDefaults, NodesConfig, PrefillNode
from spillway.wire.routerconfig import RouterConfig


class Link(NamedTuple):
    """What handing over KV costs between two nodes."""

    base_s: float
    bytes_per_s: float


# NIXL over loopback, all on shared cores; the base is the two or three decode steps that a pulled
# request waits for before its first token.
LOOPBACK = Link(0.05, 200e6)


def router_config(
    cluster: VllmCluster,
    policy: str,
    *,
    port: int = 0,
    slo_ttft_s: float = 1.0,
    slo_tbt_s: float = 0.06,
    link: Link = LOOPBACK,
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
            url=urls.get(node.name, node.url),
            name=node.name,
            report_url=node.report_url or None,
            chunk_mode=ChunkMode.ENGINE if plan.has_plugin(node.name) else ChunkMode.STATIC,
        )
        for node in cluster.of_role(Role.DECODE)
    ]
    return ClusterConfig(
        nodes=NodesConfig(prefill=prefill, decode=decode),
        router=RouterConfig(port=port, kv_lease_s=plan.lease_s, kv_block_tokens=BLOCK_TOKENS),
        defaults=NodeDefaults(
            profile=str(plan.profile_path),
            kv_capacity_tokens=plan.kv_capacity_tokens,
            link_bytes_per_s=link.bytes_per_s,
            link_base_s=link.base_s,
            step_tokens_max=plan.step_tokens_max,
            chunk_tokens_max=plan.step_tokens_max,
            seqs_max=plan.seqs_max,
        ),
        policy=PolicyConfig(name=policy),
        classes={"default": ClassConfig(ttft_s=slo_ttft_s, tbt_s=slo_tbt_s)},
    )
