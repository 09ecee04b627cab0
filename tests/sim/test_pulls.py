"""A decode node pulls KV only once it has room for it, and what that does to the prefill node."""

from __future__ import annotations

import pytest

from simdrive import finish, finished, job, round_node, step_of, times, told
from spillway.sim.node import SimNode
from spillway.sim.residents import Finished, FirstTokenAt, Preempted, PullStarted
from spillway.sim.run import RunOutput, run
from spillway.sim.scenario import Scenario
from spillway.sim.snapshot import recount_kv
from spillway.wire.profile import load_profile
from spillway.workload.row import Row


def pulling(capacity_tokens: int = 10_000, *request_ids: str, **more: int) -> SimNode:
    """A node with pulls of 1000 tokens and 5 output tokens under way."""
    node = round_node(kv_capacity_tokens=capacity_tokens, **more)
    for request_id in request_ids:
        node.submit_pull(job(request_id), 0.0)
    return node


def test_an_idle_node_with_room_asks_for_the_kv_at_once() -> None:
    node = pulling(10_000, "a")
    assert told(node.advance(0.0)) == [("PullStarted", "a", 0.0)]
    assert node.idle
    assert node.kv.used_tokens == 1000
    node.kv_arrived("a", 0.5)
    outcomes = finish(node)
    assert times(outcomes, FirstTokenAt)["a"] == pytest.approx(0.5 + step_of(1, 1000))
    resident = outcomes[-1].resident
    assert (resident.pull_s, resident.kv_arrived_s, resident.admitted_s) == (0.0, 0.5, 0.5)
    assert node.kv.used_tokens == 0


def test_a_pull_takes_no_part_in_steps_and_waits_for_their_ends() -> None:
    node = round_node()
    node.submit_pulled(job("a", 1000, 50), 0.0)
    node.advance(0.0)
    first_s = step_of(1, 1000)
    node.submit_pull(job("b", 500, 1), 0.5 * first_s)
    node.advance(first_s)
    resident = node.members["b"]
    assert resident.pull_s == pytest.approx(first_s)
    node.kv_arrived("b", 1.5 * first_s)
    outcomes = finish(node, 0.1)
    second_s = first_s + step_of(1, 1001)
    assert resident.admitted_s == pytest.approx(second_s)
    assert times(outcomes, FirstTokenAt)["b"] == pytest.approx(second_s + step_of(2, 1002 + 500))


def test_a_pull_waits_for_room_and_the_others_behind_it() -> None:
    node = pulling(1500, "a", "b")
    node.submit_pull(job("small", 100, 2), 0.0)
    assert told(node.advance(0.0)) == [("PullStarted", "a", 0.0)]
    node.kv_arrived("a", 0.1)
    outcomes = finish(node)
    freed_s = times(outcomes, Finished)["a"]
    assert times(outcomes, PullStarted) == {"b": freed_s, "small": freed_s}


def test_room_of_a_pull_is_not_taken_from_it() -> None:
    """The batch grows until it lacks room: what runs is preempted, never what is on its way."""
    node = pulling(2100, "a")
    node.submit_pulled(job("old", 1000, 300), 0.0)
    node.advance(0.0)
    outcomes = finish(node)
    assert {o.resident.request_id for o in outcomes if isinstance(o, Preempted)} == {"old"}
    assert node.members["a"].kv_arrived_s is None
    node.kv_arrived("a", 50.0)
    assert finished(finish(node)) == ["a", "old"]
    assert node.kv.used_tokens == 0


@pytest.mark.parametrize("stage", ["waits", "pulls", "landed"])
def test_an_abort_gives_back_what_the_pull_has_booked(stage: str) -> None:
    node = round_node(kv_capacity_tokens=1200 if stage == "waits" else 10_000)
    node.submit_pulled(job("busy", 1000, 100), 0.0)
    node.advance(0.0)
    node.submit_pull(job("gone"), 0.001)
    node.advance(node.next_event_s())
    if stage == "landed":
        node.kv_arrived("gone", 0.012)
    assert node.abort("gone", 0.013)
    recount_kv(node)
    assert finished(finish(node)) == ["busy"]
    assert (node.kv.used_tokens, node.pulls, len(node.landed)) == (0, 0, 0)


def test_reports_count_the_room_of_pulls_as_used() -> None:
    node = pulling(10_000, "a")
    assert node.state(0.0).kv_used_tokens == 0
    node.advance(0.0)
    assert (node.state(0.0).kv_used_tokens, node.state(0.0).decode_seqs) == (1000, 0)


def test_a_crash_forgets_pulls() -> None:
    node = pulling(1500, "a", "b")
    node.advance(0.0)
    assert node.fail(0.1) == ["a", "b"]
    assert (node.pulls, node.kv.used_tokens, node.idle) == (0, 0, True)


# --- in a cluster ----------------------------------------------------------------------------


def blocked(kv_capacity_tokens: int, **changes: object) -> RunOutput:
    """Ten prompts of 1000 tokens and long answers for one prefill and one decode node."""
    scenario = Scenario(
        cluster="1p1d",
        policy="least-loaded",
        kv_capacity_tokens=kv_capacity_tokens,
        step_tokens_max=1000,
        **changes,  # type: ignore[arg-type]
    )
    return run(scenario, [Row(0.0, 1000, 500)] * 10, 1, checks=True)


def test_a_full_decode_node_blocks_prefill() -> None:
    """Room for three prompts on each side: the prefill node fills with KV that nobody can take."""
    full, roomy = blocked(4000), blocked(100_000)
    parts = [record.parts for record in full.records if record.parts is not None]
    assert len(parts) == 10
    execute_s = parts[0].execute
    # Three stream, three hold their KV, four have not begun when the first stream ends.
    first_end_s = min(record.finish_s for record in full.records if record.finish_s is not None)
    begun_s = sorted(one.queue for one in parts)
    assert begun_s[5] < first_end_s < begun_s[6]
    assert begun_s[6] > 10 * execute_s
    free = [record.parts for record in roomy.records if record.parts is not None]
    assert max(one.queue for one in free) == pytest.approx(9 * execute_s, rel=1e-6)


def test_waiting_for_room_is_admission_and_not_transfer() -> None:
    full = blocked(4000)
    kv_bytes = 1000 * load_profile(Scenario().profile).kv_bytes_per_token
    for record in full.records:
        assert record.parts is not None
        assert record.parts.transfer < 3 * (0.002 + kv_bytes / 25e9)
    assert max(record.parts.admission for record in full.records if record.parts) > 1.0


def test_both_ends_of_a_transfer_queue() -> None:
    """Two prefill nodes finish together and share the decode node's link; it is the slow one."""
    kv_bytes = 1000 * load_profile(Scenario().profile).kv_bytes_per_token
    scenario = Scenario(cluster="2p1d", policy="least-loaded", link_bytes_per_s=kv_bytes / 0.5)
    output = run(scenario, [Row(0.0, 1000, 2), Row(0.0, 1000, 2)], 1, checks=True)
    transfers_s = sorted(one.parts.transfer for one in output.records if one.parts is not None)
    assert transfers_s == pytest.approx([0.502, 1.004], abs=0.05)
