"""No disaggregation: every node of both pools, in chunks, and the usual way when none may."""

from __future__ import annotations

import pytest

from builders import make_cluster, make_request
from fleets import decode_node, prefill_node, prefilling
from spillway.core.decide import Decision, Reason, Route
from spillway.core.policies.colocated import Colocated
from spillway.core.types import ChunkMode, NodeView


def decide(*nodes: NodeView, **options: int) -> Decision:
    return Colocated(**options).decide(make_request(), make_cluster(*nodes))


def test_the_node_with_the_least_predicted_ttft_runs_everything() -> None:
    nodes = [decode_node("d0", 40), decode_node("d1", 5), prefill_node("p0", 4000)]
    decision = decide(*nodes)
    assert (decision.route, decision.reason) == (Route.DEFLECTED, Reason.COLOCATED)
    assert decision.decode_node_id == "d1"
    assert decision.execute_plan
    assert decision.plan is not None
    assert decision.plan.chunks == ((512, 3), (464, 1))
    totals = [one.estimate.total_s for one in decision.candidates if one.estimate]
    assert len(totals) == 3
    assert decision.estimate.total_s == min(totals)


def test_the_prefill_pools_nodes_take_their_share_unless_left_out() -> None:
    nodes = [decode_node("d0", 40), prefill_node("p0")]
    assert decide(*nodes).decode_node_id == "p0"
    assert decide(*nodes, whole_cluster=False).decode_node_id == "d0"


def test_prompts_ahead_are_counted_in_chunks_beside_the_batch() -> None:
    ahead = prefilling(decode_node("d0", 5), 5120, seconds=0.0)  # what the ledger says is not used
    plain = decide(ahead).estimate
    assert plain.queue_s > 10 * 0.03  # ten chunks of 512
    halves = decide(ahead, chunk_tokens=256).estimate
    assert halves.queue_s > plain.queue_s
    assert halves.execute_s > plain.execute_s


def test_a_stock_engine_keeps_its_own_chunk() -> None:
    stock = decode_node("d0", 5, chunk_mode=ChunkMode.STATIC, chunk_tokens_max=1500)
    decision = decide(stock)
    assert decision.plan is not None
    assert decision.plan.chunks == ((1500, 1), (500, 1))
    assert not decision.execute_plan


@pytest.mark.parametrize("prefill", [[prefill_node(kv_capacity_tokens=0)], []])
def test_a_prompt_that_no_node_may_take_goes_the_usual_way(prefill: list[NodeView]) -> None:
    decision = decide(decode_node(kv_capacity_tokens=1000), *prefill)
    if prefill:
        assert (decision.route, decision.reason) == (Route.PREFILL, Reason.NO_SAFE_DECODE_NODE)
        assert [one.verdict for one in decision.candidates] == [
            Reason.CHOSEN,
            Reason.KV_VETO,
            Reason.KV_VETO,
        ]
    else:
        assert decision.route is Route.REJECTED
