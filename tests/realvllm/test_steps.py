"""What the plug-in does to the steps of a real engine, read from the engine's own account of them.

Judged by the law and the budget that the plug-in says it had, so that a slow machine, whose steps
are late and whose chunks are therefore small, passes as a fast one does.
"""

from __future__ import annotations

import asyncio

import aiohttp

from spillway.core.chunks import next_chunk_tokens
from spillway.core.latency import token_pairs
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import profile_file
from spillway.wire.report import StepTaken
from vllmdrive import Answer, Heard, ask, completion, listening, token_ids, until

PLAN = {"plugin": {"tbt_s": 0.03, "skipped_steps_max": 4}}
STREAMS = 16
STREAM_TOKENS = 600
LONG_TOKENS = 4000
MULTIPLE_TOKENS = 64


async def start_streams(
    session: aiohttp.ClientSession, cluster: VllmCluster, heard: Heard
) -> list[asyncio.Task[Answer]]:
    """Start the streams and return once each of them decodes."""
    url = cluster.nodes["d0"].url
    begun: set[int] = set()
    tasks = [
        asyncio.create_task(
            ask(
                session,
                url,
                completion(token_ids(60 + 5 * at, at), STREAM_TOKENS, stream=True),
                on_event=lambda answer, at=at: begun.add(at),  # type: ignore[misc]
            )
        )
        for at in range(STREAMS)
    ]
    await until(lambda: len(begun) == STREAMS and heard.last.decode_seqs == STREAMS)
    return tasks


def judge(steps: list[StepTaken], plan_tokens_max: int, cluster: VllmCluster) -> tuple[int, int]:
    """Check each chunk of one prompt against the law; return (chunks, forced chunks)."""
    profile = profile_file(cluster.plan).latency()
    context = forced = chunks = 0
    for step in steps:
        if not step.prefill_tokens:
            continue
        chunks += 1
        remaining = LONG_TOKENS - context
        allowed = next_chunk_tokens(
            profile,
            step.decode_seqs,
            step.kv_tokens,
            context,
            remaining,
            step.budget_s,
            plan_tokens_max - step.decode_seqs,
            MULTIPLE_TOKENS,
        )
        if not allowed:
            forced += 1
            allowed = min(MULTIPLE_TOKENS, remaining)
        assert step.prefill_tokens == allowed, (step, context)
        assert step.prefill_token_pairs == token_pairs(allowed, context)
        context += allowed
    assert context == LONG_TOKENS
    return chunks, forced


async def test_a_long_prompt_takes_from_each_step_what_the_planner_allows(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    async with listening(session, cluster, "d0") as heard:
        assert heard.last.fault == ""
        tasks = await start_streams(session, cluster, heard)
        before = max(heard.steps)
        long = await ask(
            session, cluster.nodes["d0"].url, completion(token_ids(LONG_TOKENS, 99), 2, stream=True)
        )
        assert long.status == 200
        assert long.done
        await until(lambda: any(s.decode_seqs == STREAMS + 1 for s in heard.since(before)))
        streams = await asyncio.gather(*tasks)
    steps = heard.since(before)
    with_prompt = [step for step in steps if step.prefill_tokens]
    chunks, forced = judge(steps, cluster.plan.step_tokens_max, cluster)
    assert chunks > 4  # it was cut: nothing like a step of 2,048 tokens
    assert max(step.prefill_tokens for step in with_prompt) < 1000
    # No stream lost a single step to the prompt, and none ended early.
    between = [s for s in steps if with_prompt[0].step <= s.step <= with_prompt[-1].step]
    assert {step.decode_seqs for step in between} == {STREAMS}
    assert all(stream.done and stream.usage == {} for stream in streams)
    assert forced <= chunks
    assert heard.last.errors == 0
    assert heard.last.fault == ""


async def test_without_a_deflected_prompt_no_step_is_touched(
    cluster: VllmCluster, session: aiohttp.ClientSession
) -> None:
    async with listening(session, cluster, "d0") as heard:
        tasks = await start_streams(session, cluster, heard)
        before = max(heard.steps)
        await asyncio.gather(*tasks)
        steps = heard.since(before)
    decoding = [step for step in steps if step.decode_seqs == STREAMS]
    assert len(decoding) > STREAM_TOKENS // 2
    assert {step.prefill_tokens for step in decoding} == {0}
    assert {step.budget_s for step in decoding} == {0.0}
