"""Power of two choices: a lot that is fair, repeatable, and of nodes that can be used."""

from __future__ import annotations

from collections import Counter

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node
from spillway.core.decide import Reason, Route
from spillway.core.policies.power_of_two import PowerOfTwo, drawn


def test_the_less_loaded_of_the_drawn_nodes_is_taken() -> None:
    nodes = [prefill_node(f"p{at}", 1000 * at) for at in range(6)]
    nodes += [decode_node(f"d{at}", 10 * at) for at in range(6)]
    cluster = make_cluster(*nodes)
    for at in range(50):
        request = make_request(f"r{at}")
        decision = PowerOfTwo().decide(request, cluster)
        few = [node.node_id for node in drawn(request.request_id, cluster.prefill, 2)]
        decodes = [node.node_id for node in drawn(request.request_id, cluster.decode, 2)]
        assert (decision.route, decision.reason) == (Route.PREFILL, Reason.STATIC)
        assert decision.prefill_node_id == min(few)  # the backlog grows with the number
        assert decision.decode_node_id == min(decodes)
        assert PowerOfTwo().pick_decode(request, cluster) == decision.decode_node_id


def test_the_lot_is_fair_and_never_takes_a_node_twice() -> None:
    nodes = tuple(prefill_node(f"p{at}") for at in range(5))
    pairs = Counter(tuple(node.node_id for node in drawn(f"r{at}", nodes, 2)) for at in range(5000))
    assert len(pairs) == 10  # every pair of five
    assert all(first < second for first, second in pairs)
    assert 400 < min(pairs.values()) <= max(pairs.values()) < 600


def test_a_node_that_cannot_be_used_is_not_drawn() -> None:
    nodes = tuple(prefill_node(f"p{at}", usable=at > 2) for at in range(5))
    assert [node.node_id for node in drawn("r", nodes, 2)] == ["p3", "p4"]
    assert drawn("r", nodes[:2], 2) == ()


def test_with_one_choice_load_does_not_matter() -> None:
    cluster = make_cluster(prefill_node("p0", 90_000), prefill_node("p1"), decode_node())
    ways = Counter(
        PowerOfTwo(choices=1).decide(make_request(f"r{at}"), cluster).prefill_node_id
        for at in range(200)
    )
    assert min(ways["p0"], ways["p1"]) > 70
