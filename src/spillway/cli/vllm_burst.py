"""A burst on real vLLM engines, sized to what they can do: of `spillway demo` and the validation.

Engines on a processor are a hundred times slower than on a GPU, and no two machines are alike. So
lengths are fixed, and times and targets are multiples of what the engines' step-time law says.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from spillway.core.errors import NodeError
from spillway.core.latency import LatencyProfile, prefill_s, step_s, token_pairs
from spillway.core.types import Role, Slo
from spillway.wire.records import RequestRecord
from spillway.workload.lengths import Lengths, Lognormal
from spillway.workload.row import Row
from spillway.workload.seeds import stream

if TYPE_CHECKING:
    from spillway.loadgen.runner import LoadResult
    from spillway.router.app import Server
    from spillway.vllmcluster.cluster import VllmCluster
    from spillway.vllmcluster.routing import Link
    from spillway.wire.profile import ProfileFile

BASELINE = "least-loaded"  # static disaggregation: every prompt by the prefill path
STEP_TOKENS = 2048
LONG_TOKENS = 1500  # mean prompt of the burst
LONG_PROMPTS, LONG_OUTPUT = Lognormal(LONG_TOKENS, cv=0.6, tokens_max=6000), Lognormal(30.0, cv=0.5)
CHAT_PROMPTS, CHAT_OUTPUT = Lognormal(150.0, cv=0.5, tokens_max=600), Lognormal(150.0, cv=0.5)
BURST_PROMPTS, CHATS_PER_PROMPT = 24, 0.5
RUSH = 4.0  # times as fast as the prefill node can work it off
LEAD_FRAC = 0.1  # of the time that the burst's prefill takes, before it begins
TTFT_PROMPTS = 3.0  # TTFT target: so many mean prompts' prefill
TBT_STEPS = 6.0  # gap target: so many decode steps of the batch below
TYPICAL_SEQS, TYPICAL_CONTEXT_TOKENS = 16, 500
PROBES = 5
READY_S_MAX = 60.0
POLL_S = 0.05
DRAIN_S = 120.0


class Burst(NamedTuple):
    """Rows and their targets. work_s: the prefill of all of it, by the law."""

    rows: list[Row]
    slo: Slo
    work_s: float

    @property
    def title(self) -> str:
        prompts = sum(row.prompt_tokens for row in self.rows)
        return (
            f"{len(self.rows)} requests with {prompts:,} prompt tokens, {self.work_s:.1f} s of"
            f" prefill, in {self.rows[-1].arrival_s:.1f} s; targets: first token within"
            f" {self.slo.ttft_s:.2f} s, {self.slo.tbt_s * 1e3:.0f} ms between tokens"
        )


def tbt_target_s(law: LatencyProfile) -> float:
    """Return the gap target on engines of this law, in whole milliseconds as headers carry it."""
    kv_tokens = TYPICAL_SEQS * TYPICAL_CONTEXT_TOKENS
    return round(TBT_STEPS * step_s(law, TYPICAL_SEQS, kv_tokens), 3)


def make_burst(law: LatencyProfile, seed: int, prompts: int = BURST_PROMPTS) -> Burst:
    """Return steady chat and, soon, a rush of `prompts` long prompts. The same seed, the same."""
    mean_s = prompt_s(law, LONG_TOKENS)
    burst_s = prompts * mean_s
    arrivals = {
        "chat": _arrivals(seed, "chat", round(CHATS_PER_PROMPT * prompts), burst_s),
        "long": [
            LEAD_FRAC * burst_s + at_s for at_s in _arrivals(seed, "long", prompts, burst_s / RUSH)
        ],
    }
    kinds: dict[str, tuple[Lengths, Lengths]] = {
        "chat": (CHAT_PROMPTS, CHAT_OUTPUT),
        "long": (LONG_PROMPTS, LONG_OUTPUT),
    }
    rows = []
    for kind, (lengths, outputs) in kinds.items():
        rng = stream(seed, f"vllm_burst.{kind}.lengths")
        rows += [Row(at_s, lengths.draw(rng), outputs.draw(rng)) for at_s in arrivals[kind]]
    rows.sort(key=lambda row: row.arrival_s)
    slo = Slo(round(TTFT_PROMPTS * mean_s, 2), tbt_target_s(law))
    return Burst(rows, slo, sum(prompt_s(law, row.prompt_tokens) for row in rows))


def prompt_s(law: LatencyProfile, prompt_tokens: int) -> float:
    """Return the seconds that one prompt takes on an idle prefill node."""
    return prefill_s(law, prompt_tokens, token_pairs(prompt_tokens, 0), STEP_TOKENS)


async def first_token_s(url: str, prompt_tokens: int, rng: Random) -> float:
    """Return how long one prompt's first token takes at an engine or router. Raises NodeError."""
    from spillway.calib.client import EngineClient
    from spillway.calib.steps import until
    from spillway.clock import MonotonicClock
    from spillway.vllmcluster.plan import MODEL_NAME

    clock = MonotonicClock()
    async with EngineClient(url, clock, rng) as client:
        client.model = MODEL_NAME
        prompt = client.start(prompt_tokens, 1)
        await until(clock, lambda: prompt.ended, "the answer to a prompt")
    if prompt.error or not prompt.times_s:
        raise NodeError(f"a prompt of {prompt_tokens} tokens failed: {prompt.error or 'no token'}")
    return prompt.times_s[0] - prompt.sent_s


async def believe_speed(cluster: VllmCluster, seed: int) -> LatencyProfile:
    """Return the plan's law, scaled to how fast its engines are here; routers then read that one.

    A few prompts on an idle prefill node tell the scale; its shape is that of another processor.
    """
    from spillway.vllmcluster.plan import profile_file
    from spillway.wire.profile import write_profile_file

    rng = stream(seed, "vllm_burst.probes")
    url = next(node.url for node in cluster.nodes.values() if node.role is Role.PREFILL)
    probes_s = [await first_token_s(url, LONG_TOKENS, rng) for _ in range(PROBES)]
    file = profile_file(cluster.plan)
    scaled = scaled_by(file, median(probes_s) / prompt_s(file.latency(), LONG_TOKENS))
    write_profile_file(cluster.plan.profile_path, scaled)
    return scaled.latency()


def scaled_by(file: ProfileFile, factor: float) -> ProfileFile:
    """Return the profile of engines that take so many times as long for everything."""
    law = file.coefficients
    coefficients = replace(
        law,
        step_base_s=factor * law.step_base_s,
        token_s=tuple(factor * one for one in law.token_s),
        decode_seq_s=factor * law.decode_seq_s,
        kv_token_s=factor * law.kv_token_s,
        token_pair_s=factor * law.token_pair_s,
    )
    return replace(file, coefficients=coefficients)


def _arrivals(seed: int, kind: str, count: int, duration_s: float) -> list[float]:
    """Return `count` times in the duration: Poisson arrivals of that number are evenly spread."""
    rng = stream(seed, f"vllm_burst.{kind}.arrivals")
    return sorted(duration_s * rng.random() for _ in range(count))


async def send_burst(url: str, burst: Burst, label: str) -> LoadResult:
    """Send the burst to a router on schedule and return what came of it."""
    from spillway.cli.load import send
    from spillway.loadgen.runner import LoadOptions
    from spillway.vllmcluster.plan import MODEL_NAME

    options = LoadOptions(base_url=url, model=MODEL_NAME, slo=burst.slo, drain_s=DRAIN_S)
    return await send(burst.rows, options, label)


def with_kv_moved(records: Sequence[RequestRecord], kv_bytes_per_token: int) -> list[RequestRecord]:
    """Return the records with the KV that their route moved; real engines do not tell it."""
    return [
        replace(one, kv_bytes_moved=kv_bytes_per_token * one.prompt_tokens)
        if one.route == "prefill"
        else one
        for one in records
    ]


@asynccontextmanager
async def router_for(
    cluster: VllmCluster, policy: str, slo: Slo, link: Link | None = None
) -> AsyncIterator[str]:
    """Put a router with the policy in front of the cluster; yield its URL once it can be used.

    Raises NodeError when it cannot use the nodes, or when one of them ends meanwhile.
    """
    from spillway.router.app import serve_config
    from spillway.vllmcluster.routing import LOOPBACK, router_config

    config = router_config(
        cluster, policy, slo_ttft_s=slo.ttft_s, slo_tbt_s=slo.tbt_s, link=link or LOOPBACK
    )
    router = await serve_config(config)
    try:
        await _until_ready(router, cluster)
        yield f"http://{router.settings.host}:{router.port}"
    finally:
        await router.close()
    ended = [node.name for node in cluster.nodes.values() if node.ended.is_set()]
    if ended:
        raise NodeError(f"ended by itself: {', '.join(ended)}; see {cluster.plan.folder}")


async def _until_ready(router: Server, cluster: VllmCluster) -> None:
    """Return once every node answers, and those with the plug-in report."""
    wanted = {name for name, node in cluster.nodes.items() if node.report_url}
    try:
        async with asyncio.timeout(READY_S_MAX):
            while not (
                all(node.is_up for node in router.health.nodes.values())
                and router.shell.takes_orders >= wanted
            ):
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise NodeError(
            f"the router could not use every node within {READY_S_MAX:g} s;"
            f" see {cluster.plan.folder}"
        ) from None
