"""Leaving a node before the last token: preempted, aborted, lost."""

from __future__ import annotations

import pytest

from simdrive import finish, finished, job, round_node, step_of, times
from spillway.core.types import Role
from spillway.sim.residents import Finished, FirstTokenAt, Phase, Preempted


def test_growth_beyond_capacity_preempts_the_latest_arrival_which_is_prefilled_again() -> None:
    node = round_node(kv_capacity_tokens=1000)
    node.submit_pulled(job("old", 450, 100, slo_tbt_s=0.05), 0.0)
    young = node.submit_pulled(job("young", 450, 100, slo_tbt_s=0.05), 0.0)
    outcomes = finish(node)
    # 900 tokens at first, two more per step: after 50 steps nothing is left for a 51st.
    assert [o.resident.request_id for o in outcomes if isinstance(o, Preempted)] == ["young"]
    assert (node.preemptions, young.preemptions) == (1, 1)
    assert finished(outcomes) == ["old", "young"]
    assert young.generated_tokens == 100
    old_end_s = times(outcomes, Finished)["old"]
    stall_s = (
        old_end_s + step_of(0, 0, [(500, 0)]) - sum(step_of(2, 900 + 2 * i) for i in range(50))
    )
    assert young.gap_max_s == pytest.approx(stall_s)
    assert young.gaps_late == 1
    assert node.gaps.count == 2 * 99
    assert node.kv.used_tokens == 0


def test_a_preempted_request_goes_before_newer_ones() -> None:
    node = round_node(kv_capacity_tokens=1000)
    node.submit_pulled(job("old", 450, 100), 0.0)
    node.submit_pulled(job("young", 450, 100), 0.0)
    finish(node, 0.6)
    assert node.preemptions == 1
    node.submit_pulled(job("new", 300, 2), node.next_event_s())
    outcomes = finish(node)
    assert times(outcomes, FirstTokenAt)["new"] > times(outcomes, Finished)["old"]
    assert finished(outcomes)[0] == "old"


def test_each_phase_can_be_aborted_and_gives_its_kv_back() -> None:
    for phase in (Phase.QUEUED, Phase.PREFILLING, Phase.ARRIVED, Phase.DECODING):
        node = round_node(seqs_max=1 if phase in (Phase.QUEUED, Phase.ARRIVED) else 8)
        node.submit_pulled(job("other", 100, 30), 0.0)
        finish(node, 0.0)
        if phase in (Phase.QUEUED, Phase.PREFILLING):
            resident = node.submit_local(job("gone", 30_000, 10, slo_tbt_s=0.02), 0.001)
        else:
            resident = node.submit_pulled(job("gone", 1000, 1000), 0.001)
        finish(node, 0.05)
        assert resident.phase is phase
        assert node.abort("gone", 0.0501)
        assert not node.abort("gone", 0.0501)
        outcomes = finish(node)
        assert finished(outcomes) == ["other"], phase
        assert resident.phase is Phase.GONE
        assert (node.kv.used_tokens, len(node.members), node.state(9.0).backlog_tokens) == (0, 0, 0)


def test_an_abort_in_a_step_takes_effect_at_its_end() -> None:
    node = round_node()
    resident = node.submit_pulled(job("a", 1000, 100), 0.0)
    finish(node, 0.0)
    node.abort("a", 0.0001)
    assert finish(node) == []
    assert resident.generated_tokens == 1
    assert resident.last_token_s == pytest.approx(step_of(1, 1000))


def test_held_kv_can_be_aborted() -> None:
    node = round_node(Role.PREFILL)
    node.submit_prefill(job("a", 1000, 1), 0.0)
    finish(node, release=False)
    assert node.abort("a", 1.0)
    assert node.kv.used_tokens == 0
    assert node.idle


def test_the_same_id_may_come_back_after_an_abort() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 100), 0.0)
    finish(node, 0.0)
    node.abort("a", 0.001)
    node.submit_pulled(job("a", 1000, 2), 0.002)
    assert finished(finish(node)) == ["a"]


def test_a_node_that_fails_loses_everything_but_the_tokens_already_sent() -> None:
    node = round_node(seqs_max=1)
    resident = node.submit_pulled(job("a", 1000, 100), 0.0)
    node.submit_local(job("b", 5000, 100), 0.0)
    finish(node, 0.011)
    steps_s = [step_of(1, 1000 + i) for i in range(5)]
    assert node.fail(sum(steps_s) + 0.001) == ["a", "b"]
    assert node.idle
    assert (node.kv.used_tokens, len(node.members)) == (0, 0)
    assert resident.generated_tokens == 5
    assert resident.last_token_s == pytest.approx(sum(steps_s))
    assert node.gaps.count == 4
