"""The checkers themselves: they pass what is sound and name what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan

import pytest

import strategies as sp
from builders import make_cluster, make_node, make_request
from harness import Harness
from spillway.core.baselines import Threshold
from spillway.core.chunks import ChunkPlan
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.dispatcher import Dispatcher
from spillway.core.errors import InvariantViolation
from spillway.core.events import FirstToken, PrefillFinished
from spillway.core.headroom import Headroom
from spillway.core.invariants import check_decision, check_dispatcher, walk_plan
from spillway.core.kairos import KairosPaper
from spillway.core.latency import step_s
from spillway.core.lifecycle import State
from spillway.core.policies.colocated import Colocated
from spillway.core.types import ClusterView, Role

REQUEST = make_request()


def busy_dispatcher() -> Dispatcher:
    """One request in each live state but DEFLECTED."""
    run = Harness()
    for request_id in ("r1", "r2", "r3"):
        run.arrive(request_id)
    run(PrefillFinished("r2"), PrefillFinished("r3"), FirstToken("r3"))
    return run.dispatcher


def corrupt_count(dispatcher: Dispatcher) -> None:
    dispatcher.counts[State.FINISHED] += 1


def corrupt_state(dispatcher: Dispatcher) -> None:
    dispatcher._live["r1"].state = State.TRANSFERRING


def corrupt_end(dispatcher: Dispatcher) -> None:
    dispatcher._live["r1"].state = State.FAILED
    dispatcher.counts[State.PREFILLING] -= 1
    dispatcher.counts[State.FAILED] += 1


def forget_request(dispatcher: Dispatcher) -> None:
    del dispatcher._live["r3"]
    dispatcher.counts[State.DECODING] -= 1
    dispatcher.counts[State.FINISHED] += 1


def forget_booking(dispatcher: Dispatcher) -> None:
    dispatcher._live["r1"].entry = None


def misplace_booking(dispatcher: Dispatcher) -> None:
    dispatcher._live["r1"].node_id = "p1"


def drift_tokens(dispatcher: Dispatcher) -> None:
    dispatcher.ledger.nodes["p0"]._own_tokens += 1


def drift_pairs(dispatcher: Dispatcher) -> None:
    dispatcher.ledger.nodes["p0"]._unseen_pairs *= 1.001


def drift_targets(dispatcher: Dispatcher) -> None:
    dispatcher.ledger.nodes["d0"]._tbt_counts[0.01] = 1


def lose_unseen(dispatcher: Dispatcher) -> None:
    dispatcher.ledger.nodes["p0"]._unseen.clear()


def go_negative(dispatcher: Dispatcher) -> None:
    dispatcher.ledger.nodes["d0"].view.decode_seqs = -1


def unprotect(dispatcher: Dispatcher) -> None:
    dispatcher.ledger.nodes["d0"].view.tbt_s_min = inf


def test_a_sound_dispatcher_passes() -> None:
    check_dispatcher(busy_dispatcher())


@pytest.mark.parametrize(
    ("corrupt", "named"),
    [
        (corrupt_count, "INV-1"),
        (corrupt_state, "INV-1"),
        (corrupt_end, "INV-2"),
        (forget_request, "INV-18"),
        (forget_booking, "INV-18.*nowhere booked"),
        (misplace_booking, "INV-18.*not in the book of p1"),
        (drift_tokens, "INV-18: p0: tokens"),
        (drift_pairs, "INV-18: p0: unseen_pairs"),
        (drift_targets, "INV-18: d0: targets"),
        (lose_unseen, "INV-18: p0: unseen"),
        (go_negative, "INV-18: view of d0: decode_seqs"),
        (unprotect, "INV-18: view of d0.*not protected"),
    ],
)
def test_a_corrupted_dispatcher_is_named(corrupt: Callable[[Dispatcher], None], named: str) -> None:
    dispatcher = busy_dispatcher()
    corrupt(dispatcher)
    with pytest.raises(InvariantViolation, match=named):
        check_dispatcher(dispatcher)


# --- decisions -------------------------------------------------------------------------------


def fleet() -> ClusterView:
    prefill = make_node("p0", Role.PREFILL)
    sp.load_backlog(prefill, 6, 6000, 0.0)
    decode = make_node("d0", decode_seqs=20, kv_used_tokens=30_000, tbt_s_min=0.05)
    return make_cluster(prefill, decode, make_node("d1", usable=False))


def deflection() -> Decision:
    decision = Headroom().decide(REQUEST, fleet())
    assert decision.route is Route.DEFLECTED
    return decision


def remote() -> Decision:
    decision = Headroom().decide(
        make_request(prompt_tokens=5), make_cluster(make_node("p0", Role.PREFILL), *fleet().decode)
    )
    assert decision.route is Route.PREFILL
    return decision


def with_plan(**changes: object) -> Decision:
    decision = deflection()
    assert decision.plan is not None
    return decision._replace(plan=decision.plan._replace(**changes))


def chosen_twice() -> Decision:
    decision = deflection()
    return decision._replace(candidates=(*decision.candidates, decision.candidates[-1]))


def with_estimate(part_s: float) -> Decision:
    decision = deflection()
    extra = Candidate(None, "d9", TtftEstimate(queue_s=part_s), Reason.SLOWER)
    return decision._replace(candidates=(*decision.candidates, extra))


def test_sound_decisions_pass() -> None:
    check_decision(deflection(), REQUEST, fleet())
    check_decision(remote(), REQUEST, fleet())
    check_decision(Decision(Route.REJECTED, Reason.NO_NODE), REQUEST, fleet())
    fall_back = Decision(Route.PREFILL, Reason.POLICY_FAILED, "p0")
    check_decision(fall_back, REQUEST, fleet())


@pytest.mark.parametrize(
    ("decision", "named"),
    [
        (deflection()._replace(decode_node_id="d1"), "INV-19: d1 is not usable"),
        (deflection()._replace(decode_node_id="p0"), "INV-19: p0 was chosen, but is not in"),
        (deflection()._replace(prefill_node_id="p0"), "INV-19: a deflection names a prefill"),
        (deflection()._replace(plan=None), "INV-19: a deflection without a plan"),
        (remote()._replace(plan=ChunkPlan(((5, 1),), 0.1, 0.1)), "INV-19: a chunk plan on the"),
        (remote()._replace(prefill_node_id=None), "INV-19: None was chosen"),
        (remote()._replace(route=Route.REJECTED), "INV-19: a rejected request was given"),
        (deflection()._replace(candidates=()), "INV-19: 0 candidates are marked chosen"),
        (chosen_twice(), "INV-19: 2 candidates are marked chosen"),
        (deflection()._replace(estimate=TtftEstimate()), "INV-19: the chosen candidate"),
        (with_estimate(nan), "INV-19: estimate part queue_s is nan"),
        (with_estimate(inf), "INV-19: estimate part queue_s is inf"),
        (with_estimate(-1e-9), "INV-19: estimate part queue_s is -1e-09"),
        (with_plan(chunks=((448, 4), (207, 1))), "INV-5: the plan covers 1999 of 2000"),
        (with_plan(chunks=((2000, 1), (0, 3))), "INV-5: an empty chunk"),
        (with_plan(chunks=((500, 4),)), "INV-5.*not a multiple of 64"),
        (with_plan(execute_s=0.2), "INV-4: the plan claims 0.2 s"),
        (with_plan(step_s_max=0.01), "INV-4: the plan claims"),
    ],
)
def test_an_unsound_decision_is_named(decision: Decision, named: str) -> None:
    with pytest.raises(InvariantViolation, match=named):
        check_decision(decision, REQUEST, fleet())


def test_a_deflection_to_a_node_that_has_gone_silent_is_named() -> None:
    cluster = fleet()
    cluster.now_s = 1.5
    with pytest.raises(InvariantViolation, match="INV-14: d0"):
        check_decision(deflection(), REQUEST, cluster)


def test_a_literal_schedule_is_held_to_its_own_share_of_the_target() -> None:
    cluster = fleet()
    decision = KairosPaper(beta=1.4, alpha=10.0).decide(make_request(ttft_s=9.0), cluster)
    assert decision.execute_plan
    check_decision(decision, REQUEST, cluster, tbt_frac=1.4)
    with pytest.raises(InvariantViolation, match="INV-4: a step of"):
        check_decision(decision, REQUEST, cluster)


def test_an_unguarded_deflection_may_exceed_the_target_but_must_say_so() -> None:
    cluster = fleet()
    cluster.decode[0].tbt_s_min = 0.018
    decision = Threshold().decide(REQUEST, cluster)
    assert decision.reason is Reason.PREFILL_BUSY
    check_decision(decision, REQUEST, cluster)
    with pytest.raises(InvariantViolation, match=r"INV-4: a step of .* on d0 exceeds"):
        check_decision(decision._replace(reason=Reason.FASTER_ON_DECODE), REQUEST, cluster)


def test_only_a_policy_that_never_parts_prompt_and_decode_may_decode_on_a_prefill_node() -> None:
    cluster = replace(fleet(), decode=(replace(fleet().decode[0], over_budget=True),))
    cluster.prefill[0].backlog_tokens = cluster.prefill[0].backlog_prompts = 0
    decision = Colocated().decide(REQUEST, cluster)
    assert (decision.reason, decision.decode_node_id) == (Reason.COLOCATED, "p0")
    check_decision(decision, REQUEST, cluster)
    with pytest.raises(InvariantViolation, match="INV-19: p0 was chosen, but is not in"):
        check_decision(decision._replace(reason=Reason.BEST_SCORE), REQUEST, cluster)


def test_walking_a_plan_adds_a_token_per_stream_and_step() -> None:
    node = replace(fleet().decode[0], backlog_prompts=1)
    plan = ChunkPlan(((64, 2),), 0.0, 0.0)
    request = make_request(prompt_tokens=128)
    steps_s = [step_s(node.spec.profile, 21, 30_000 + 21 * at, 64, 64 * at) for at in range(2)]
    assert walk_plan(plan, request, node, literal=False) == (sum(steps_s), max(steps_s))
    steps_s = [step_s(node.spec.profile, 20, 30_000 + 64 * at, 64, 64 * at) for at in range(2)]
    assert walk_plan(plan, request, node, literal=True) == (sum(steps_s), max(steps_s))
