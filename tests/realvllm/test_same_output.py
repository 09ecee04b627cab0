"""Where a prompt is computed does not change one token of the answer.

The weights are random but scaled (`vllmcluster/model.py`), so that the logits are far from equal
and depend on every prompt token: wrong KV gives other tokens. They are computed in float32, where
the two paths differ by less than a thousandth of what would change a choice.
"""

from __future__ import annotations

import math
from typing import Any

import aiohttp
import pytest

from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.model import VOCABULARY
from vllmdrive import (
    DEFLECT_ALL,
    PREFILL_ALL,
    ask,
    chat,
    completion,
    router_for,
    token_ids,
    url_of,
    words,
)

PLAN = {"dtype": "float32"}
PROMPTS = 50
SHORTEST_TOKENS, LONGEST_TOKENS = 20, 4000
LOGPROB_TOLERANCE = 1e-3


def prompt_tokens(index: int) -> int:
    """Lengths in geometric progression."""
    ratio = LONGEST_TOKENS / SHORTEST_TOKENS
    return round(SHORTEST_TOKENS * ratio ** (index / (PROMPTS - 1)))


def body_of(index: int) -> dict[str, Any]:
    """Return prompt `index`: ids, text and chat in turn, every second one streamed."""
    tokens = prompt_tokens(index)
    stream = {"stream": True, "stream_options": {"include_usage": True}} if index % 2 else {}
    match index // 2 % 3:
        case 0:
            return completion(token_ids(tokens, index), logprobs=1, **stream)
        case 1:
            return completion(words(tokens, index), logprobs=1, **stream)
        case _:
            return chat(
                words(tokens - 19, index) if tokens > 30 else " ab", logprobs=True, **stream
            )


async def test_both_paths_give_the_same_tokens(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    seen: set[tuple[float, ...]] = set()
    async with router_for(cluster, PREFILL_ALL) as far, router_for(cluster, DEFLECT_ALL) as near:
        for index in range(PROMPTS):
            body = body_of(index)
            there = await ask(session, url_of(far), body)
            here = await ask(session, url_of(near), body)
            assert (there.status, there.route) == (200, "prefill"), there
            assert (here.status, here.route) == (200, "deflected"), here
            assert there.done
            assert here.done
            assert there.text == here.text
            assert there.usage["prompt_tokens"] == here.usage["prompt_tokens"]
            assert here.logprobs == pytest.approx(there.logprobs, abs=LOGPROB_TOLERANCE)
            assert len(here.logprobs) == here.usage["completion_tokens"] == 8
            seen.add(tuple(round(one, 2) for one in here.logprobs))
    # Not vacuous: every prompt has an answer of its own, far from what equal logits would give.
    assert len(seen) == PROMPTS
    uniform = -math.log(VOCABULARY)
    assert all(max(one) > uniform + 3 for one in seen)
    assert all(len(set(one)) > 2 for one in seen)
