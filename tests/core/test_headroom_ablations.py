"""The switches of `headroom` that take one of its parts away, each where it makes a difference."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.headroom import Headroom
from spillway.core.invariants import check_decision
from spillway.core.policies import build_policy
from spillway.core.types import ClusterView, RequestView


def decided(policy: Headroom, request: RequestView, cluster: ClusterView) -> Decision:
    """The decision, checked to be possible, safe and explained."""
    decision = policy.decide(request, cluster)
    check_decision(decision, request, cluster)
    return decision


def test_without_pressure_in_the_rule_an_idle_prefill_pool_loses_to_a_faster_decode_node() -> None:
    # The KV takes 42 ms on this link: with admission less than the half step that is pressure.
    cluster = make_cluster(prefill_node(link_bytes_per_s=2.6e9), decode_node("d0", 5))
    request = make_request(prompt_tokens=800)
    assert decided(Headroom(), request, cluster).reason is Reason.NO_PRESSURE
    decision = decided(Headroom(pressure=False), request, cluster)
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.FASTER_ON_DECODE)


def test_without_the_transfer_a_slow_link_is_no_reason_to_deflect() -> None:
    cluster = make_cluster(prefill_node(link_bytes_per_s=2e8), decode_node("d0", 5))
    assert decided(Headroom(), make_request(), cluster).route is Route.DEFLECTED
    decision = decided(Headroom(transfer=False), make_request(), cluster)
    assert decision.route is Route.PREFILL
    assert decision.estimate.transfer_s == 0.0


def test_without_prefixes_the_node_that_holds_the_prompt_has_no_advantage() -> None:
    cluster = make_cluster(prefill_node("p0", 4000), decode_node("d0", 5), decode_node("d1", 6))
    request = make_request(prompt_tokens=4000, cached_tokens_by_node=(("d1", 3900),))
    assert decided(Headroom(), request, cluster).decode_node_id == "d1"
    decision = decided(Headroom(prefix=False), request, cluster)
    assert decision.decode_node_id == "d0"


def test_without_prefixes_the_schedule_is_still_that_of_what_is_missing() -> None:
    cluster = make_cluster(prefill_node("p0", 9000), decode_node("d0", 5))
    request = make_request(prompt_tokens=4000, cached_tokens_by_node=(("d0", 3900),))
    decision = decided(Headroom(prefix=False), request, cluster)
    assert decision.plan is not None
    assert decision.plan.tokens == 100
    assert decision.estimate.execute_s > 0.2  # as estimated for the whole prompt


def test_without_kv_admission_a_node_without_room_is_taken() -> None:
    cluster = make_cluster(prefill_node("p0", 9000), decode_node("d0", 5, kv_capacity_tokens=6000))
    assert decided(Headroom(), make_request(), cluster).reason is Reason.NO_SAFE_DECODE_NODE
    decision = decided(Headroom(kv_admission=False), make_request(), cluster)
    assert decision.route is Route.DEFLECTED


def test_one_deflection_at_a_time_is_the_printed_rules_limit() -> None:
    cluster = make_cluster(prefill_node("p0", 20_000), prefilling(decode_node("d0", 5), 300))
    assert decided(Headroom(), make_request(), cluster).route is Route.DEFLECTED
    decision = decided(Headroom(deflections_max=1), make_request(), cluster)
    assert decision.candidates[-1].verdict is Reason.CAP_VETO


def test_the_objective_decides_when_decode_time_is_worth_spending() -> None:
    """The same three moments under each objective: idle, under pressure, and a target at stake."""
    moments = {
        "idle": make_cluster(prefill_node("p0"), decode_node("d0", 0)),
        "pressure": make_cluster(prefill_node("p0", 5_000), decode_node("d0", 0)),
        "at stake": make_cluster(prefill_node("p0", 20_000), decode_node("d0", 0)),
    }
    for objective, deflects_at in (
        ("tail-ttft", {"idle", "pressure", "at stake"}),
        ("balanced", {"pressure", "at stake"}),
        ("protect-tbt", {"at stake"}),
    ):
        policy = Headroom(objective=objective)
        routes = {name: decided(policy, make_request(), at).route for name, at in moments.items()}
        deflected = {name for name, route in routes.items() if route is Route.DEFLECTED}
        assert deflected == deflects_at, objective


def test_time_already_waited_counts_against_the_target() -> None:
    cluster = make_cluster(prefill_node("p0", 5_000), decode_node("d0", 0))
    policy = Headroom(objective="protect-tbt")
    waited = make_request(arrival_s=cluster.now_s - 0.6)
    assert decided(policy, make_request(arrival_s=cluster.now_s), cluster).route is Route.PREFILL
    assert decided(policy, waited, cluster).route is Route.DEFLECTED


def test_an_unknown_objective_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="choose one of tail-ttft, balanced, protect-tbt"):
        build_policy("headroom:objective=fast")
    with pytest.raises(ConfigError, match="must be a word"):
        build_policy("headroom:objective=3")


def test_without_links_in_the_rule_a_jammed_one_gets_the_next_transfer_as_well() -> None:
    jammed, calm = decode_node("d0", 5), decode_node("d1", 20)
    cluster = make_cluster(prefill_node("p0"), jammed, calm)
    jammed.link_until_s = cluster.now_s + 0.5
    assert Headroom().pick_decode(make_request(), cluster) == "d1"
    assert Headroom(links=False).pick_decode(make_request(), cluster) == "d0"


@pytest.mark.parametrize(("beyond_s", "slow"), [(-1e-6, False), (1e-6, True)])
@pytest.mark.parametrize("waited_s", [0.0, 0.04])
def test_a_first_token_later_than_a_quarter_of_the_target_is_deflected_though_nobody_waits(
    beyond_s: float, slow: bool, waited_s: float
) -> None:
    cluster = make_cluster(prefill_node(), decode_node("d0", 0))
    arrival_s = cluster.now_s - waited_s
    no_rule = Headroom(slow_frac=0.0)
    total_s = decided(no_rule, make_request(), cluster).estimate.total_s
    target_s = (total_s + waited_s - beyond_s) / 0.25
    request = make_request(arrival_s=arrival_s, ttft_s=target_s)
    assert (decided(Headroom(), request, cluster).route is Route.DEFLECTED) == slow
    assert decided(no_rule, request, cluster).reason is Reason.NO_PRESSURE


def test_a_slow_prompt_stays_where_the_decode_path_is_slower_still() -> None:
    cluster = make_cluster(prefill_node(), decode_node("d0", 100))
    request = make_request(arrival_s=cluster.now_s, prompt_tokens=8000)
    assert decided(Headroom(), request, cluster).reason is Reason.FASTER_ON_PREFILL
