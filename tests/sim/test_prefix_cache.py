"""KV shared between prompts that begin alike: hits, room, eviction, and the hit rate of LRU."""

from __future__ import annotations

from math import exp

import pytest

from simdrive import finish, job, round_node, step_of, times
from spillway.core.types import Role
from spillway.sim.node import SimNode
from spillway.sim.prefix_cache import CacheCounts, PrefixPool
from spillway.sim.residents import QUEUED, FirstTokenAt, Job, PrefillDone, Resident
from spillway.sim.snapshot import recount_kv
from spillway.workload.seeds import stream

BLOCK_TOKENS = 100


def caching(role: Role = Role.PREFILL, **spec: int) -> SimNode:
    node = round_node(role, **spec)
    return SimNode(node.spec, prefix_cache=True)


def alike(
    request_id: str, blocks: tuple[int, ...], prompt_tokens: int = 1000, output_tokens: int = 1
) -> Job:
    return job(request_id, prompt_tokens, output_tokens, blocks=blocks, block_tokens=BLOCK_TOKENS)


NINE = tuple(range(1, 10))
TEN = tuple(range(1, 11))


def test_a_second_prompt_computes_only_what_the_first_has_not() -> None:
    node = caching()
    node.submit_prefill(alike("a", NINE), 0.0)
    finish(node)
    node.submit_prefill(alike("b", NINE), 1.0)
    assert node.state(1.0).backlog_tokens == 100
    outcomes = finish(node)
    assert times(outcomes, PrefillDone)["b"] == pytest.approx(1.0 + step_of(0, 0, [(100, 900)]))
    assert node.cache_counts is not None
    assert (node.cache_counts.hit_tokens, node.cache_counts.asked_tokens) == (900, 2000)


def test_the_last_token_is_always_computed() -> None:
    node = caching()
    node.submit_prefill(alike("a", TEN), 0.0)
    finish(node)
    node.submit_prefill(alike("b", TEN), 1.0)
    outcomes = finish(node)
    assert times(outcomes, PrefillDone)["b"] == pytest.approx(1.0 + step_of(0, 0, [(1, 999)]))


def test_what_differs_in_the_middle_is_no_hit_behind_it() -> None:
    node = caching()
    node.submit_prefill(alike("a", NINE), 0.0)
    finish(node)
    other = (*NINE[:4], 99, *NINE[5:])
    node.submit_prefill(alike("b", other), 1.0)
    outcomes = finish(node)
    assert times(outcomes, PrefillDone)["b"] == pytest.approx(1.0 + step_of(0, 0, [(600, 400)]))


def test_who_shares_the_step_shares_what_it_computes() -> None:
    node = caching()
    node.submit_prefill(alike("a", NINE), 0.0)
    node.submit_prefill(alike("b", NINE), 0.0)
    outcomes = finish(node)
    expected_s = step_of(0, 0, [(1000, 0), (100, 900)])
    assert times(outcomes, PrefillDone) == pytest.approx({"a": expected_s, "b": expected_s})


def test_shared_blocks_take_up_room_once() -> None:
    node = caching(kv_capacity_tokens=1500)
    for request_id in "abc":
        node.submit_prefill(alike(request_id, NINE), 0.0)
    finish(node, release=False)
    assert node.kv.used_tokens == 1000 + 2 * 100
    recount_kv(node)
    for request_id in "abc":
        node.release_kv(request_id, 1.0)
        recount_kv(node)
    assert node.kv.used_tokens == 0


def test_idle_blocks_are_evicted_least_recently_used_first_and_a_chain_from_its_end() -> None:
    node = caching(kv_capacity_tokens=2100)
    for at_s, (request_id, blocks) in enumerate((("a", NINE), ("b", tuple(range(21, 30))))):
        node.submit_prefill(alike(request_id, blocks), float(at_s))
        finish(node)
    node.submit_prefill(job("c", 500), 3.0)  # 200 of 500 are free of cached blocks
    finish(node)
    pool = node.kv
    assert isinstance(pool, PrefixPool)
    assert pool.counts.evicted_blocks == 3
    left = {name: _cached(pool, blocks) for name, blocks in (("a", NINE), ("b", range(21, 30)))}
    assert left == {"a": 600, "b": 900}


def test_a_deflected_prompt_and_a_pulled_one_leave_their_blocks_on_the_decode_node() -> None:
    for way in ("local", "pull"):
        node = caching(Role.DECODE)
        if way == "local":
            node.submit_local(alike("a", NINE, output_tokens=3), 0.0)
        else:
            node.submit_pull(alike("a", NINE, output_tokens=3), 0.0)
            node.advance(0.0)
            node.kv_arrived("a", 0.1)
        finish(node)
        node.submit_local(alike("b", NINE), 5.0)
        outcomes = finish(node)
        expected_s = 5.0 + step_of(0, 0, [(100, 900)])
        assert times(outcomes, FirstTokenAt)["b"] == pytest.approx(expected_s)


def test_a_pull_asks_only_for_what_the_node_lacks() -> None:
    node = caching(Role.DECODE)
    node.submit_local(alike("a", NINE), 0.0)
    finish(node)
    resident = node.submit_pull(alike("b", NINE, output_tokens=2), 1.0)
    node.advance(1.0)
    assert resident.remaining_tokens == 100
    node.kv_arrived("b", 1.1)
    finish(node)
    assert node.kv.used_tokens == 0


def test_a_preempted_prompt_finds_its_own_blocks_again() -> None:
    node = caching(Role.DECODE, kv_capacity_tokens=2010)
    node.submit_local(alike("a", NINE, output_tokens=50), 0.0)
    node.submit_local(alike("b", tuple(range(21, 30)), output_tokens=50), 0.0)
    finish(node)
    assert node.preemptions == 1
    assert node.cache_counts is not None
    assert node.cache_counts.hit_tokens > 0
    assert node.kv.used_tokens == 0


def test_a_crash_empties_the_cache_and_keeps_its_counts() -> None:
    node = caching()
    node.submit_prefill(alike("a", NINE), 0.0)
    finish(node)
    node.fail(1.0)
    node.submit_prefill(alike("b", NINE), 2.0)
    outcomes = finish(node)
    assert times(outcomes, PrefillDone)["b"] == pytest.approx(2.0 + step_of(0, 0, [(1000, 0)]))
    assert node.cache_counts is not None
    assert node.cache_counts.asked_tokens == 2000


@pytest.mark.slow
def test_the_hit_rate_under_independent_references_is_che_s() -> None:
    """Che's approximation: 1 - exp(-p_i·t) for block i, where t solves sum of them = room.

    Source: Che, Tung, Wang, IEEE JSAC 20 (2002); exact enough at this size to 1 %.
    """
    blocks, room, draws = 400, 100, 40_000
    weights = [1 / (1 + rank) ** 0.8 for rank in range(blocks)]
    total = sum(weights)
    shares = [weight / total for weight in weights]
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        if sum(1 - exp(-share * middle) for share in shares) < room:
            low = middle
        else:
            high = middle
    expected = sum(share * (1 - exp(-share * low)) for share in shares)
    pool = PrefixPool(room * BLOCK_TOKENS + BLOCK_TOKENS, CacheCounts())
    rng = stream(5, "references")
    for index, block in enumerate(rng.choices(range(blocks), shares, k=draws)):
        if index == draws // 4:  # warm
            pool.counts.hit_tokens = pool.counts.asked_tokens = 0
        prompt = alike(f"r{index}", (block,), BLOCK_TOKENS + 1)
        resident = Resident(prompt, index, QUEUED, False)
        pool.enter(resident, BLOCK_TOKENS + 1)
        pool.publish(resident)
        pool.leave(resident, BLOCK_TOKENS + 1)
    rate = pool.counts.hit_tokens / (pool.counts.asked_tokens / (BLOCK_TOKENS + 1) * BLOCK_TOKENS)
    assert rate == pytest.approx(expected, rel=0.03)


def _cached(pool: PrefixPool, blocks: range | tuple[int, ...]) -> int:
    return pool.cached_tokens(Resident(alike("probe", tuple(blocks)), 0, QUEUED, False))
