"""Prefix reuse in a whole cluster: what the router believes, what the nodes find, what moves."""

from __future__ import annotations

import pytest

from spillway.core.policies import POLICY_NAMES
from spillway.sim.faults import NodeDies
from spillway.sim.run import RunOutput, run
from spillway.sim.scenario import Scenario
from spillway.wire.profile import load_profile
from spillway.workload.row import Row
from spillway.workload.seeds import stream

BLOCK_TOKENS = 128
KV_BYTES = load_profile(Scenario().profile).kv_bytes_per_token


def turns(sessions: int, turns_each: int, gap_s: float = 4.0) -> list[Row]:
    """Conversations whose every turn is the whole conversation so far and 500 tokens more."""
    rng = stream(7, "turns")
    rows = []
    for session in range(sessions):
        start_s = rng.uniform(0.0, gap_s)
        for turn in range(1, turns_each + 1):
            prompt_tokens = 500 * turn
            ids = tuple(1000 * session + block for block in range(prompt_tokens // BLOCK_TOKENS))
            at_s = start_s + gap_s * turn
            rows.append(Row(at_s, prompt_tokens, 20, prefix_blocks=ids, block_tokens=BLOCK_TOKENS))
    return sorted(rows)


def simulate(rows: list[Row], **changes: object) -> RunOutput:
    changes = {"policy": "least-loaded"} | changes
    return run(Scenario(**changes), rows, 1, checks=True)  # type: ignore[arg-type]


def mean_ttft_s(output: RunOutput) -> float:
    return sum(record.ttft_s or 0.0 for record in output.records) / len(output.records)


def test_a_later_turn_moves_only_what_the_decode_node_lacks() -> None:
    first, second = turns(1, 2)
    output = simulate([first, second], cluster="1p1d")
    cached_tokens = 500 // BLOCK_TOKENS * BLOCK_TOKENS
    moved = [record.kv_bytes_moved for record in output.records]
    assert moved == [500 * KV_BYTES, (1000 - cached_tokens) * KV_BYTES]
    assert output.work.prefix_hit_tokens == 2 * cached_tokens  # once on each node
    parts = output.records[1].parts
    assert parts is not None
    assert parts.transfer == pytest.approx(0.002 + moved[1] / 25e9)


def test_without_caches_everything_is_computed_and_moved_again() -> None:
    rows = turns(6, 5)
    cached, plain = simulate(rows), simulate(rows, prefix_cache=False, prefix_index=False)
    assert plain.work.prefix_hit_tokens == plain.work.prefix_asked_tokens == 0
    assert sum(one.kv_bytes_moved for one in plain.records) == KV_BYTES * sum(
        row.prompt_tokens for row in rows
    )
    assert mean_ttft_s(cached) < mean_ttft_s(plain)


def test_a_small_pool_evicts_and_finds_less() -> None:
    rows = turns(12, 5)
    large = simulate(rows, kv_capacity_tokens=400_000)
    small = simulate(rows, kv_capacity_tokens=6_000)
    assert large.work.evicted_blocks == 0
    assert small.work.evicted_blocks > 0
    assert small.work.prefix_hit_tokens < large.work.prefix_hit_tokens


def test_a_router_that_knows_sends_turns_to_where_their_prefix_is() -> None:
    rows = turns(8, 6)
    knowing = simulate(rows, policy="llmd-prefix", cluster="3p3d")
    blind = simulate(rows, policy="round-robin", cluster="3p3d")
    assert knowing.work.prefix_hit_tokens > 1.3 * blind.work.prefix_hit_tokens


def test_ppd_runs_later_turns_in_place_only_when_it_knows_where() -> None:
    rows = turns(4, 4)
    routes = [record.route for record in simulate(rows, policy="ppd").records]
    assert routes.count("deflected") == 12  # all but the four first turns
    blind = simulate(rows, policy="ppd", prefix_index=False)
    assert {record.route for record in blind.records} == {"prefill"}


def test_headroom_counts_only_the_uncached_tokens_of_a_deflection() -> None:
    seen = []
    rows = turns(10, 5, gap_s=1.0)
    run(Scenario(policy="headroom"), rows, 1, on_decision=seen.append)
    held = [log for log in seen if log.request.cached_tokens_by_node]
    assert len(held) == 40
    for log in held:
        node_id = log.decision.decode_node_id
        if log.decision.plan is not None and node_id is not None:
            planned = sum(size * steps for size, steps in log.decision.plan.chunks)
            assert planned < log.request.prompt_tokens


def test_a_node_that_died_is_believed_empty() -> None:
    first, second = turns(1, 2)
    faults = (NodeDies(node_id="p0", at_s=second.arrival_s - 2.0, back_s=second.arrival_s - 1.0),)
    seen = []
    scenario = Scenario(policy="least-loaded", cluster="1p1d", faults=faults)
    run(scenario, [first, second], 1, checks=True, on_decision=seen.append)
    assert seen[-1].request.cached_tokens_by_node == (("d0", 384),)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_keeps_every_invariant_with_shared_prefixes(policy: str) -> None:
    rows = turns(20, 6, gap_s=1.0)
    for capacity in (20_000, 4_000):
        output = simulate(rows, policy=policy, kv_capacity_tokens=capacity, cancel_frac=0.1)
        assert output.work.prefix_hit_tokens > 0 or capacity == 4_000
        assert len(output.records) == len(rows)
