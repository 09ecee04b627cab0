"""The prompt queue by itself: order, room, and the books of the backlog."""

from __future__ import annotations

from typing import Any

import pytest

from builders import make_spec
from simdrive import job
from spillway.core.latency import token_pairs
from spillway.core.types import ChunkMode, Role
from spillway.sim.batch import DecodeBatch
from spillway.sim.kv import KvPool
from spillway.sim.prompts import Prompts
from spillway.sim.residents import Phase, Resident
from spillway.stats import GapHistogram


def make(role: Role = Role.PREFILL, capacity_tokens: int = 0, **spec: Any) -> Prompts:
    kv = KvPool(capacity_tokens)
    return Prompts(make_spec("n0", role, **spec), DecodeBatch(GapHistogram()), kv, 8)


def resident(request_id: str, prompt_tokens: int, order: int = 0) -> Resident:
    return Resident(job(request_id, prompt_tokens, 1), order, Phase.QUEUED, False)


def sizes(prompts: Prompts) -> list[tuple[str, int]]:
    return [(one.request_id, tokens) for one, tokens in prompts.chunks]


def test_a_prompt_starts_only_when_a_step_has_tokens_for_it() -> None:
    prompts = make(step_tokens_max=100)
    for request_id in "abc":
        prompts.push(resident(request_id, 60))
    prompts.pick(1.0)
    assert sizes(prompts) == [("a", 60), ("b", 40)]
    assert [one.request_id for one in prompts.running] == ["a", "b"]
    assert [one.request_id for one in prompts.queued] == ["c"]
    assert [one.request_id for one in prompts.run(1)] == ["a"]
    prompts.pick(2.0)
    assert sizes(prompts) == [("b", 20), ("c", 60)]
    assert prompts.running[1].started_s == 2.0


def test_the_head_waits_for_room_and_holds_back_what_is_behind_it() -> None:
    prompts = make(capacity_tokens=100)
    prompts.push(resident("large", 200))
    prompts.push(resident("small", 10))
    prompts.pick(0.0)
    assert prompts.chunks == []
    assert len(prompts.queued) == 2


def test_a_full_step_may_be_repeated_until_the_prompt_s_last() -> None:
    prompts = make(step_tokens_max=100)
    prompts.push(resident("a", 350))
    prompts.push(resident("b", 10))
    prompts.pick(0.0)
    assert (sizes(prompts), prompts.chunk_steps) == ([("a", 100)], 3)
    assert prompts.run(3) == []
    prompts.pick(1.0)
    assert (sizes(prompts), prompts.chunk_steps) == ([("a", 50), ("b", 10)], 1)


def test_the_backlog_is_what_is_left_to_compute() -> None:
    prompts = make(step_tokens_max=100)
    prompts.push(resident("a", 350))
    prompts.push(resident("b", 50))
    assert prompts.backlog_tokens == 400
    assert prompts.backlog_pairs == token_pairs(350, 0) + token_pairs(50, 0)
    prompts.pick(0.0)
    prompts.run(2)
    assert prompts.backlog_tokens == 200
    assert prompts.backlog_pairs == token_pairs(150, 200) + token_pairs(50, 0)
    prompts.drop(prompts.running[0])
    prompts.drop(prompts.queued[0])
    assert (prompts.backlog_tokens, prompts.backlog_pairs) == (0, 0.0)


def test_pairs_of_a_step_are_summed_over_its_chunks() -> None:
    prompts = make(step_tokens_max=100)
    prompts.push(resident("a", 60))
    prompts.push(resident("b", 60))
    prompts.pick(0.0)
    assert prompts.pairs == pytest.approx(token_pairs(60, 0) + token_pairs(40, 0))


def test_a_preempted_prompt_without_room_blocks_newer_work() -> None:
    prompts = make(Role.DECODE, capacity_tokens=100)
    again = resident("again", 200)
    prompts.push(again, first=True)
    assert not prompts.blocked()
    again.preemptions = 1
    assert prompts.blocked()


@pytest.mark.parametrize(
    ("mode", "chunk_tokens"), [(ChunkMode.ENGINE, 100), (ChunkMode.STATIC, 700)]
)
def test_a_schedule_is_heeded_by_every_engine_but_a_stock_one(
    mode: ChunkMode, chunk_tokens: int
) -> None:
    prompts = make(Role.DECODE, chunk_mode=mode, chunk_tokens_max=700)
    asked = resident("a", 1000)
    asked.job = asked.job._replace(chunks=((100, 10),))
    prompts.push(asked)
    prompts.pick(0.0)
    assert sizes(prompts) == [("a", chunk_tokens)]
