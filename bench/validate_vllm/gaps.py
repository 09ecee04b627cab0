"""Token gaps of decoding streams while a long prompt is prefilled on their node.

Three arms, in turn: nothing beside the streams (what the machine's noise alone does), the prompt on
the node with the plug-in, and the prompt on a stock node of the same cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from spillway.calib.client import EngineClient, TokenStream
from spillway.calib.steps import tokens_more, until
from spillway.cli.output import progress
from spillway.clock import MonotonicClock
from spillway.core.errors import NodeError
from spillway.stats import percentile
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import MODEL_NAME
from spillway.workload.seeds import stream
from validate_vllm.results import GapRound, Gaps

QUIET, PLUGIN, STOCK = "no prompt", "plug-in", "stock"
NODES = {QUIET: "d0", PLUGIN: "d0", STOCK: "d1"}
STREAMS = 16
STREAM_PROMPT_TOKENS, STREAM_OUTPUT_TOKENS = 200, 2000
LONG_TOKENS = 4000
LEAD_TOKENS = 10  # of each stream, before the window begins
QUIET_TOKENS = 64  # of each stream, that a window without a prompt lasts
SETTLE_S = 1.0


async def measure(cluster: VllmCluster, target_s: float, rounds: int, seed: int) -> Gaps:
    """Return `rounds` windows of each arm; each round begins with another arm.

    cluster: d0 has the plug-in, with `target_s`; d1 is stock. Raises NodeError.
    """
    rng = stream(seed, "validate.gaps")
    arms = (QUIET, PLUGIN, STOCK)
    found: list[GapRound] = []
    with progress("streams and prompts", rounds * len(arms)) as advance:
        for number in range(rounds):
            first = number % len(arms)
            for arm in arms[first:] + arms[:first]:
                advance(len(found), arm)
                found.append(await _window(cluster.nodes[NODES[arm]].url, arm, rng))
    return Gaps(target_s=target_s, rounds=found)


async def _window(url: str, arm: str, rng: Random) -> GapRound:
    clock = MonotonicClock()
    async with EngineClient(url, clock, rng) as client:
        client.model = MODEL_NAME
        streams = [client.start(STREAM_PROMPT_TOKENS, STREAM_OUTPUT_TOKENS) for _ in range(STREAMS)]
        await tokens_more(clock, streams, LEAD_TOKENS)
        start_s, prompt_s = clock.now_s(), None
        if arm == QUIET:
            await tokens_more(clock, streams, QUIET_TOKENS)
            end_s = clock.now_s()
        else:
            prompt = client.start(LONG_TOKENS, 1)
            await until(clock, lambda: prompt.ended, "the answer to the long prompt")
            if prompt.error or not prompt.times_s:
                raise NodeError(f"the long prompt failed: {prompt.error or 'no token came'}")
            end_s = prompt.times_s[0]
            prompt_s = end_s - prompt.sent_s
            await tokens_more(clock, streams, 2)  # the gaps that the last chunk made
        if any(one.ended for one in streams):
            raise NodeError(f"a stream ended beside the prompt: {streams[0].error or 'too soon'}")
    await clock.sleep_until(clock.now_s() + SETTLE_S)  # the engine drops what its client left
    gaps = sorted(gaps_between(streams, start_s, end_s))
    return GapRound(
        arm=arm,
        gaps=len(gaps),
        p50_s=percentile(gaps, 0.5),
        p99_s=percentile(gaps, 0.99),
        max_s=gaps[-1],
        prompt_s=prompt_s,
    )


def gaps_between(streams: Sequence[TokenStream], start_s: float, end_s: float) -> list[float]:
    """Return every gap of the streams that overlaps the window."""
    return [
        after_s - before_s
        for one in streams
        for before_s, after_s in zip(one.times_s, one.times_s[1:], strict=False)
        if after_s > start_s and before_s < end_s
    ]
