"""The list of policies, and the laws that every one of them keeps on any fleet it may see."""

from __future__ import annotations

import copy
from dataclasses import is_dataclass
from math import inf
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import strategies as sp
from builders import make_cluster, make_node, make_request
from spillway.core.decide import Policy, Reason, Route
from spillway.core.errors import ConfigError, InvariantViolation
from spillway.core.invariants import check_decision
from spillway.core.policies import (
    POLICIES,
    POLICY_NAMES,
    build_policy,
    option_text,
    policy_options,
)
from spillway.core.types import ClusterView, RequestView, Role

BETA = 1.2
VARIANTS: dict[str, tuple[dict[str, object], ...]] = {
    "round-robin": ({},),
    "least-loaded": ({},),
    "power-of-two": ({}, {"choices": 1}),
    "threshold": (
        {},
        {"backlog_tokens_min": 0, "prompt_tokens_max": 500},
        {"backlog_tokens_min": 100, "prompt_tokens_max": 5000, "both": True},
    ),
    "dynamo-isl-bounding": ({}, {"isl_frac_max": 1.1, "decode_busy_frac": 0.9}),
    "dynamo-prefill-load": ({}, {"busy_factor": 0.0, "block_tokens": 16, "seq_blocks": 2.0}),
    "dynamo-isl-or-load": ({"isl_frac_max": 1.1}, {"busy_factor": 1.0, "decode_busy_frac": 0.5}),
    "llmd-prefix": ({}, {"uncached_tokens_min": 0}, {"prompt_tokens_min": 5000}),
    "splitwise-mixed": ({}, {"pending_tokens_max": 100}),
    "sangam": ({}, {"overload_tokens": 500}),
    "xllm": ({}, {"target_ttft_s": 0.01, "target_tbt_s": 0.2, "apart": False}),
    "ppd": ({}, {"append_tokens_max": 0, "tbt_factor": 0.1}),
    "taichi-lite": ({}, {"short_tokens_max": 40_000, "chunk_tokens": 64}),
    "colocated": ({}, {"whole_cluster": False, "chunk_tokens": 2048}),
    "least-ttft": ({}, {"nodes_max": 2}),
    "externality": ({}, {"own": False}, {"residents": False, "nodes_max": 1}),
    "kairos-paper": (
        {},
        {"literal": False},
        {"beta": BETA, "exclusive": False},
        {"alpha": 1.0, "clamp_chunk": False, "sizes_tokens": [512, 64]},
    ),
    "kairos-adapted": ({}, {"exclusive": False, "beta": 1.0, "alpha": 1.3}),
    "headroom": (
        {},
        {"deflections_max": 1, "margin_max": 1.0},
        {"plans_max": 1},
        {"pressure": False, "transfer": False},
        {"prefix": False, "kv_admission": False},
    ),
}
ALL: tuple[Policy, ...] = tuple(
    build_policy(name, options) for name, many in VARIANTS.items() for options in many
)
every_policy = pytest.mark.parametrize("policy", ALL, ids=repr)


def a_long_queue() -> tuple[RequestView, ClusterView]:
    """A situation in which every policy that can deflect does."""
    prefill = make_node("p0", Role.PREFILL, heard_at_s=10.0)
    sp.load_backlog(prefill, 8, 8000, 10.0)
    decode = make_node("d0", decode_seqs=5, kv_used_tokens=9000, tbt_s_min=0.06, heard_at_s=10.0)
    return make_request(prompt_tokens=400), make_cluster(prefill, decode, now_s=10.0)


def test_every_policy_is_listed_and_varied_here() -> None:
    assert set(VARIANTS) == set(POLICY_NAMES) == set(POLICIES)
    assert all(build_policy(name).name == name for name in POLICY_NAMES)


@pytest.mark.parametrize("name", ["threshold", "kairos-paper", "headroom"])
def test_a_long_queue_is_deflected_by_every_policy_that_can(name: str) -> None:
    assert build_policy(name).decide(*a_long_queue()).route is Route.DEFLECTED


# --- laws on any fleet -----------------------------------------------------------------------


@pytest.mark.slow
@given(sp.situations())
@example(a_long_queue())
def test_each_decision_is_possible_safe_and_explained(
    situation: tuple[RequestView, ClusterView],
) -> None:
    """INV-4, INV-5, INV-14 and INV-19, by the checker that simulations run too."""
    request, cluster = situation
    for policy in ALL:
        decision = policy.decide(request, cluster)
        try:
            check_decision(decision, request, cluster, tbt_frac=getattr(policy, "beta", 1.0))
        except InvariantViolation as found:
            pytest.fail(f"{policy}: {found}")


@pytest.mark.slow
@given(sp.situations())
@example(a_long_queue())
def test_a_policy_is_pure(situation: tuple[RequestView, ClusterView]) -> None:
    request, cluster = situation
    before = copy.deepcopy(cluster)
    for policy in ALL:
        first = policy.decide(request, cluster)
        assert policy.decide(request, cluster) == first
        assert policy.decide(request, before) == first
        assert policy.pick_decode(request, cluster) == policy.pick_decode(request, before)
        assert cluster == before, policy


@pytest.mark.slow
@given(sp.situations(), st.floats(1.0001, 60.0))
@example(a_long_queue(), 1.5)
def test_inv_14_nothing_is_deflected_to_a_node_that_has_been_silent_for_too_long(
    situation: tuple[RequestView, ClusterView], silent_s: float
) -> None:
    request, cluster = situation
    for node in (*cluster.decode, *cluster.prefill):
        node.reporting = True
        node.heard_at_s = cluster.now_s - silent_s * cluster.report_age_max_s
    for policy in ALL:
        assert policy.decide(request, cluster).route is not Route.DEFLECTED, policy


@pytest.mark.slow
@given(sp.situations())
def test_a_node_that_is_down_gets_nothing(situation: tuple[RequestView, ClusterView]) -> None:
    request, cluster = situation
    usable = {node.node_id for node in (*cluster.prefill, *cluster.decode) if node.usable}
    none_decodes = not any(node.usable for node in cluster.decode)
    for policy in ALL:
        decision = policy.decide(request, cluster)
        picked = policy.pick_decode(request, cluster)
        assert {decision.prefill_node_id, decision.decode_node_id, picked} <= usable | {None}
        assert (picked is None) == none_decodes
        if none_decodes and decision.reason is not Reason.COLOCATED:
            assert decision.route is Route.REJECTED


@every_policy
def test_an_empty_fleet_is_answered_and_not_an_error(policy: Policy) -> None:
    decision = policy.decide(make_request(), make_cluster())
    assert decision.route is Route.REJECTED
    assert policy.pick_decode(make_request(), make_cluster()) is None


@every_policy
def test_without_decode_nodes_only_a_policy_that_needs_none_goes_on(policy: Policy) -> None:
    decision = policy.decide(make_request(), make_cluster(make_node("p0", Role.PREFILL)))
    assert (decision.route is Route.REJECTED) == (not getattr(policy, "whole_cluster", False))
    assert policy.pick_decode(make_request(), make_cluster()) is None


@every_policy
def test_without_prefill_nodes_every_policy_deflects_where_that_is_safe(policy: Policy) -> None:
    cluster = make_cluster(make_node("p0", Role.PREFILL, usable=False), make_node("d0"))
    decision = policy.decide(make_request(), cluster)
    assert (decision.route, decision.decode_node_id) == (Route.DEFLECTED, "d0")
    assert decision.execute_plan == (decision.reason is Reason.COLOCATED)


# --- INV-7: no oracle ------------------------------------------------------------------------


def reachable_fields(start: type) -> set[str]:
    """Every field name that can be reached from `start` through dataclasses and named tuples."""
    names: set[str] = set()
    todo, seen = [start], set()
    while todo:
        one: Any = todo.pop()
        if get_origin(one) is not None or isinstance(one, UnionType):
            todo.extend(get_args(one))
        elif one not in seen and (is_dataclass(one) or hasattr(one, "_fields")):
            seen.add(one)
            hints = get_type_hints(one)
            names.update(hints)
            todo.extend(hints.values())
    return names


def test_inv_7_no_policy_input_tells_a_true_output_length() -> None:
    names = reachable_fields(RequestView) | reachable_fields(ClusterView)
    assert {"prompt_tokens", "step_base_s", "ttft_s", "decode_seqs"} <= names  # the walk is deep
    about_output = {name for name in names if "output" in name or "generated" in name}
    # The client's declared limit, and what completed requests of a class have taught.
    assert about_output == {"output_tokens_max", "output_tokens_by_class"}


# --- building by name ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("headrom", "headroom"),
        ("kairos", "kairos-paper"),
        ("dynamo-isl-bound", "dynamo-isl-bounding"),
        ("headroom:presure=off", "pressure"),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_probably_meant(text: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{nearest}'"):
        build_policy(text)
    with pytest.raises(ConfigError) as found:
        build_policy("zzz")
    assert "did you mean" not in str(found.value)


def test_switches_behind_the_name_are_options() -> None:
    text = "kairos-paper:alpha=2,exclusive=off,literal=true,sizes_tokens=512+64,beta=1.5"
    options: dict[str, object] = {"alpha": 2.0, "exclusive": False, "beta": 1.5}
    assert build_policy(text) == build_policy("kairos-paper", options | {"sizes_tokens": [512, 64]})
    assert build_policy("headroom:") == build_policy("headroom")


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_default_is_written_as_it_is_read(name: str) -> None:
    options = policy_options(POLICIES[name])
    text = ",".join(f"{key}={option_text(value)}" for key, value in options.items())
    assert build_policy(f"{name}:{text}") == build_policy(name)


@pytest.mark.parametrize(
    "switches", ["pressure", "pressure=", "=off", "pressure=off,pressure=on", "a=1,,b=2"]
)
def test_switches_that_are_not_understood_are_refused(switches: str) -> None:
    with pytest.raises(ConfigError, match="NAME:OPTION=VALUE"):
        build_policy(f"headroom:{switches}")


def test_a_switch_and_an_option_must_not_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"'pressure' is given twice"):
        build_policy("headroom:pressure=off", {"pressure": False})


def test_an_unknown_policy_is_refused_with_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"'best'.*round-robin.*headroom"):
        build_policy("best")


def test_an_unknown_option_is_refused_with_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"kairos-paper.*'gamma'.*alpha.*beta"):
        build_policy("kairos-paper", {"gamma": 1})
    with pytest.raises(ConfigError, match=r"round-robin.*'name'.*none"):
        build_policy("round-robin", {"name": "mine"})


@pytest.mark.parametrize(
    ("name", "key", "value", "kind"),
    [
        ("kairos-paper", "alpha", "1.3", "float"),
        ("kairos-paper", "alpha", True, "float"),
        ("kairos-paper", "exclusive", 1, "bool"),
        ("kairos-paper", "sizes_tokens", 512, "list of whole numbers"),
        ("kairos-paper", "sizes_tokens", [512, "256"], "list of whole numbers"),
        ("threshold", "backlog_tokens_min", 1.5, "int"),
        ("headroom", "deflections_max", None, "int"),
        ("xllm", "target_ttft_s", "soon", "float"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(
    name: str, key: str, value: object, kind: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*{key}.*{kind}"):
        build_policy(name, {key: value})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kairos-paper", {"alpha": 0.9}),
        ("kairos-paper", {"alpha": inf}),
        ("kairos-paper", {"beta": 0.0}),
        ("kairos-paper", {"sizes_tokens": []}),
        ("kairos-paper", {"sizes_tokens": [128, 256]}),
        ("kairos-paper", {"sizes_tokens": [128, 0]}),
        ("threshold", {"backlog_tokens_min": -1}),
        ("threshold", {"backlog_tokens_min": 0}),
        ("power-of-two", {"choices": 0}),
        ("dynamo-isl-bounding", {"isl_tokens_max": -1}),
        ("dynamo-isl-or-load", {"isl_frac_max": inf}),
        ("dynamo-prefill-load", {"busy_factor": -0.1}),
        ("dynamo", {"block_tokens": 0}),
        ("dynamo", {"seq_blocks": inf}),
        ("dynamo", {"decode_busy_frac": 1.1}),
        ("llmd-prefix", {"uncached_tokens_min": -1}),
        ("llmd-prefix", {"queue_factor": inf}),
        ("splitwise-mixed", {"pending_tokens_max": 0}),
        ("sangam", {"overload_tokens": 0}),
        ("xllm", {"target_ttft_s": -1.0}),
        ("xllm", {"target_tbt_s": inf}),
        ("ppd", {"append_tokens_max": -1}),
        ("ppd", {"tbt_factor": -1.0}),
        ("taichi-lite", {"chunk_tokens": 0}),
        ("taichi-lite", {"short_tokens_max": -1}),
        ("colocated", {"chunk_tokens": 0}),
        ("least-ttft", {"nodes_max": 0}),
        ("externality", {"nodes_max": 0}),
        ("externality", {"own": False, "residents": False}),
        ("kairos-adapted", {"alpha": 0.99}),
        ("kairos-adapted", {"beta": 0.0}),
        ("headroom", {"deflections_max": 0}),
        ("headroom", {"plans_max": 0}),
        ("headroom", {"margin_max": 0.99}),
        ("headroom", {"slack_frac": 1.01}),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=name):
        build_policy("dynamo-isl-or-load" if name == "dynamo" else name, options)


def test_options_arrive() -> None:
    policy = build_policy("kairos-paper", {"alpha": 2, "sizes_tokens": [512, 64]})
    assert policy == build_policy("kairos-paper", {"sizes_tokens": (512, 64), "alpha": 2.0})
    assert policy != build_policy("kairos-paper")
