"""INV-6, INV-8, INV-9: a tape of facts gives the same orders, whoever plays it, and wherever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import tape
from builders import make_cluster, make_node, make_request
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.events import (
    Action,
    ChunkingLearned,
    Event,
    LogDecision,
    NodeJoined,
    NodeLeft,
    NodeStrained,
)
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.core.types import Role
from spillway.router.decision_log import decode_line, encode_line

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
# What only a live router learns: nodes that come and go, how an engine was started, and what the
# streams of a node without reports look like.
LIVE_ONLY = {ChunkingLearned, NodeJoined, NodeLeft, NodeStrained}


def fresh_dispatcher(policy: str) -> Dispatcher:
    scenario = tape.scenario(policy)
    limits = DispatchLimits(
        report_age_max_s=scenario.report_age_max_s, retries_max=scenario.retries_max
    )
    return Dispatcher(build_policy(policy), scenario.specs(), limits, record_views=True)


def test_the_tapes_hold_every_kind_of_fact_and_order() -> None:
    heard = [one for policy in tape.DIGESTED for one in tape.record(policy).heard]
    assert {type(one.event) for one in heard} == set(get_args(Event)) - LIVE_ONLY
    assert {type(order) for one in heard for order in one.orders} == set(get_args(Action))


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_inv_9_a_tape_played_again_gives_the_same_orders(policy: str) -> None:
    for _ in range(2):
        dispatcher = fresh_dispatcher(policy)
        for heard in tape.record(policy).heard:
            assert tuple(dispatcher.handle(heard.event, heard.now_s)) == heard.orders
        assert dispatcher.counts == tape.record(policy).dispatcher.counts


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_inv_8_a_logged_decision_is_made_again_from_its_line(policy: str) -> None:
    specs = {spec.node_id: spec for spec in tape.scenario(policy).specs()}
    again = build_policy(policy)
    decided = 0
    for heard in tape.record(policy).heard:
        for order in heard.orders:
            if isinstance(order, LogDecision):
                assert order.cluster is not None
                assert again.decide(order.request, order.cluster) == order.decision
                line = decode_line(encode_line(order, policy))
                assert line.replay(again, specs) == line.logged.decision
                decided += 1
    assert decided >= len(tape.rows())


def test_inv_8_a_view_with_an_endless_backlog_is_read_back_as_one() -> None:
    """No chunk of what is queued on d0 is safe; read back as idle, it would be chosen."""
    prefill = make_node("p0", Role.PREFILL, backlog_until_s=9.0)
    decode = make_node("d0", backlog_until_s=float("inf"), tbt_s_min=0.06, decode_seqs=1)
    request, cluster = make_request(), make_cluster(prefill, decode)
    policy = build_policy("headroom")
    decision = policy.decide(request, cluster)
    line = decode_line(encode_line(LogDecision(request, decision, 0.0, cluster), "headroom"))
    specs = {"p0": prefill.spec, "d0": decode.spec}
    assert line.replay(policy, specs) == line.logged.decision


def test_inv_6_two_processes_with_different_hash_seeds_agree() -> None:
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))
    digests = set()
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tape"],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert digests == {tape.digest()}
