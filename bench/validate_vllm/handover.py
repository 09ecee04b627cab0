"""What an idle cluster adds to its steps: HTTP and queues on the way in, and the KV's way over.

The simulator and the router are given these, measured apart from the bursts that they are to tell.
"""

from __future__ import annotations

from statistics import median

from spillway.cli.vllm_burst import BASELINE, first_token_s, prompt_s, router_for
from spillway.core.latency import LatencyProfile, step_s
from spillway.core.types import Slo
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.routing import Link
from spillway.workload.seeds import stream
from validate_vllm.results import Handover

SHORT_TOKENS, LONG_TOKENS = 64, 4000
BYTES_PER_S_MAX = 25e9  # when a long prompt's KV takes no longer than a short one's


async def measure(
    cluster: VllmCluster, law: LatencyProfile, slo: Slo, repeats: int, seed: int
) -> Handover:
    """Return the medians of `repeats` rounds of short and long prompts, alone and handed over."""
    alone_s: dict[int, list[float]] = {SHORT_TOKENS: [], LONG_TOKENS: []}
    over_s: dict[int, list[float]] = {SHORT_TOKENS: [], LONG_TOKENS: []}
    rng = stream(seed, "validate.handover")
    async with router_for(cluster, BASELINE, slo) as url:
        for _ in range(repeats):
            for tokens in alone_s:
                alone_s[tokens].append(await first_token_s(cluster.nodes["p0"].url, tokens, rng))
                over_s[tokens].append(await first_token_s(url, tokens, rng))
    order_s = max(0.0, median(alone_s[SHORT_TOKENS]) - prompt_s(law, SHORT_TOKENS))
    short_s, long_s = (
        median(after - before for after, before in zip(over_s[n], alone_s[n], strict=True))
        - order_s
        - step_s(law, 1, n)
        for n in (SHORT_TOKENS, LONG_TOKENS)
    )
    kv_bytes = (LONG_TOKENS - SHORT_TOKENS) * law.kv_bytes_per_token
    bytes_per_s = kv_bytes / (long_s - short_s) if long_s > short_s else BYTES_PER_S_MAX
    bytes_per_s = min(bytes_per_s, BYTES_PER_S_MAX)
    base_s = max(0.0, short_s - SHORT_TOKENS * law.kv_bytes_per_token / bytes_per_s)
    return Handover(order_s=order_s, link_base_s=base_s, link_bytes_per_s=bytes_per_s)


def link_of(handover: Handover) -> Link:
    return Link(handover.link_base_s, handover.link_bytes_per_s)
