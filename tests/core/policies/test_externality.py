"""The causal-externality rule: harm counts, harm that comes too late does not, and its switches."""

from __future__ import annotations

from builders import make_cluster, make_profile, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Reason, Route
from spillway.core.policies.externality import Externality

# A decode node twice as slow as the default in everything.
SLOW = make_profile(
    name="slow",
    step_base_s=24e-3,
    token_s=(16e-6, 90e-6, 7e-6),
    kv_token_s=170e-9,
    token_pair_s=5400e-12,
)


def test_without_anybody_to_harm_it_is_the_requests_own_value_that_counts() -> None:
    busy = make_cluster(prefill_node("p0", 60_000), decode_node())
    decision = Externality().decide(make_request(), busy)
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.BEST_SCORE)


def test_harm_alone_never_runs_a_prompt_beside_streams_when_it_need_not() -> None:
    cluster = make_cluster(prefill_node("p0", 60_000), decode_node("d0", 40))
    assert Externality(own=False).decide(make_request(), cluster).route is Route.PREFILL
    assert Externality(residents=False).decide(make_request(), cluster).route is Route.DEFLECTED


def test_more_streams_on_a_node_tip_the_balance_to_the_prefill_path() -> None:
    routes = []
    for seqs in (1, 10, 100, 240):
        cluster = make_cluster(prefill_node("p0", 9000), decode_node("d0", seqs))
        routes.append(Externality().decide(make_request(), cluster).route)
    assert routes[0] is Route.DEFLECTED
    assert routes[-1] is Route.PREFILL
    assert routes == sorted(routes)  # "deflected" before "prefill": it changes its mind once


def test_work_that_starts_after_every_stream_has_ended_harms_nobody() -> None:
    """Half an answer of 100 tokens at about 14 ms a step is over long before 5 s have passed."""
    policy = Externality(own=False)
    soon = decode_node("d0", 40)
    later = prefilling(decode_node("d1", 40), 4000, seconds=5.0)
    request = make_request()
    decision = policy.decide(request, make_cluster(prefill_node("p0", 30_000), soon, later))
    # A prompt behind the long prefill queue is too late to harm, too, and sooner.
    assert decision.route is Route.PREFILL
    decision = policy.decide(request, make_cluster(prefill_node(), soon, later))
    assert (decision.route, decision.decode_node_id) == (Route.DEFLECTED, "d1")


def test_a_stream_stays_off_the_slow_node_for_its_whole_answer() -> None:
    slow, fast = decode_node("d0", profile=SLOW), decode_node("d1", 12)
    request = make_request(output_tokens_max=1000)
    cluster = make_cluster(prefill_node(), slow, fast)
    assert Externality().pick_decode(request, cluster) == "d1"
    assert Externality(own=False).pick_decode(request, cluster) == "d0"  # nobody to harm there
    assert Externality().decide(request, cluster).decode_node_id == "d1"


def test_a_request_that_is_hopelessly_late_is_still_placed() -> None:
    cluster = make_cluster(prefill_node("p0", 50_000_000), decode_node("d0", 3, usable=True))
    decision = Externality().decide(make_request(ttft_s=1e-6, tbt_s=1e-6), cluster)
    assert decision.route is Route.DEFLECTED
