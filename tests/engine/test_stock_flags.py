"""What the flags that `spillway check` recommends do in vLLM's own schedulers, without a plug-in.

`make test-vllm` runs these in the environment that has vLLM; elsewhere they are skipped.
"""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm.v1", reason="vLLM is not installed here; make test-vllm runs this")

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from spillway.core.stock import recommended_flags
from vllmrig import STREAMS, Rig

CHUNK_TOKENS = 512
PROMPT_TOKENS = 8000
FLAGS = recommended_flags(CHUNK_TOKENS, len(STREAMS), 64)


@pytest.fixture(params=[Scheduler, AsyncScheduler], ids=["sync", "async"])
def rig(request: pytest.FixtureRequest, tmp_path: Path):
    """16 streams decode on a stock engine that pulls KV; then a long prompt is begun."""
    one = Rig(
        request.param,
        tmp_path,
        asynchronous=request.param is AsyncScheduler,
        remote=True,
        step_tokens=FLAGS.max_num_batched_tokens,
        seqs=FLAGS.max_num_seqs,
    )
    for name in STREAMS:
        one.add(name, 100, 500)
    one.run(60, until=lambda: all(one.outputs.get(name, 0) > 1 for name in STREAMS))
    one.trace.clear()
    yield one
    one.close()


def pulled_before_the_prompt_ends(rig: Rig) -> bool:
    """Deflect a prompt, then hand over a request whose KV is elsewhere: which of them is first?"""
    rig.add("deflected", PROMPT_TOKENS, 4)
    rig.step()
    pulled = rig.add("pulled", 300, 4, remote=True)
    is_let_in = False
    for _ in range(60):
        if not is_let_in and pulled.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
            rig.arrive("pulled")
            is_let_in = True
        rig.step()
        if rig.outputs.get("pulled", 0):
            return not rig.outputs.get("deflected", 0)
    raise AssertionError("the pulled request never got a token")


def test_without_the_threshold_a_pulled_request_waits_for_the_prompt(rig: Rig) -> None:
    assert not pulled_before_the_prompt_ends(rig)


def test_with_it_a_pulled_request_is_let_in_between(rig: Rig) -> None:
    rig.scheduler.scheduler_config.long_prefill_token_threshold = FLAGS.long_prefill_token_threshold
    assert pulled_before_the_prompt_ends(rig)


def test_no_step_computes_more_prompt_than_the_step_limit_even_for_two_prompts(rig: Rig) -> None:
    rig.scheduler.scheduler_config.long_prefill_token_threshold = FLAGS.long_prefill_token_threshold
    rig.add("one", PROMPT_TOKENS, 2)
    rig.add("two", PROMPT_TOKENS, 2)
    rig.run(60, until=lambda: bool(rig.outputs.get("one") and rig.outputs.get("two")))
    chunks = [sum(n for n, _ in step.prefill(rig.prompts).values()) for step in rig.trace]
    assert FLAGS.long_prefill_token_threshold < max(chunks) <= CHUNK_TOKENS - len(STREAMS)
    assert all(set(STREAMS) <= set(rig.decodes(step)) for step in rig.trace)
