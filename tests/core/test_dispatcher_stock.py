"""What is believed of nodes without a plug-in: their chunk, and how their streams do."""

from __future__ import annotations

import pytest

from builders import A100_8B, make_request, make_spec, make_state
from spillway.core.baselines import LeastLoaded
from spillway.core.decide import Reason
from spillway.core.dispatcher import Dispatcher
from spillway.core.events import (
    ChunkingLearned,
    FirstToken,
    NodeReported,
    NodeStrained,
    RequestArrived,
    StartDeflected,
)
from spillway.core.latency import step_s
from spillway.core.placement import deflect_unguarded, state_veto
from spillway.core.types import ChunkMode, NodeView, Role

STATIC = {"chunk_mode": ChunkMode.STATIC, "chunk_tokens_max": 512}


def dispatcher_of(**decode: object) -> Dispatcher:
    return Dispatcher(LeastLoaded(), [make_spec("p0", Role.PREFILL), make_spec("d0", **decode)])


def view_of(dispatcher: Dispatcher) -> NodeView:
    return dispatcher.ledger.nodes["d0"].view


def veto_of(dispatcher: Dispatcher) -> Reason | None:
    return state_veto(view_of(dispatcher), dispatcher.ledger.cluster(dispatcher.now_s, 0))


@pytest.mark.parametrize("configured", [ChunkMode.ENGINE, ChunkMode.STATIC])
def test_a_nodes_word_on_its_chunk_is_believed(configured: ChunkMode) -> None:
    dispatcher = dispatcher_of(chunk_mode=configured, chunk_tokens_max=256)
    assert dispatcher.handle(ChunkingLearned("d0", ChunkMode.STATIC, 512), 0.0) == []
    spec = view_of(dispatcher).spec
    assert (spec.chunk_mode, spec.chunk_tokens_max) == (ChunkMode.STATIC, 512)
    assert veto_of(dispatcher) is None


def test_a_node_that_is_forbidden_stays_so_and_a_foreign_one_is_counted() -> None:
    dispatcher = dispatcher_of(chunk_mode=ChunkMode.UNKNOWN)
    dispatcher.handle(ChunkingLearned("d0", ChunkMode.STATIC, 512), 0.0)
    assert veto_of(dispatcher) is Reason.STALE_VETO
    dispatcher.handle(ChunkingLearned("d9", ChunkMode.STATIC, 512), 0.0)
    dispatcher.handle(NodeStrained("d9", True), 0.0)
    assert dispatcher.ignored_events == 2


def test_what_was_learned_outlives_the_corrections_of_later_reports() -> None:
    dispatcher = dispatcher_of()
    dispatcher.handle(ChunkingLearned("d0", ChunkMode.STATIC, 512), 0.0)
    for at_s, gain in ((0.1, 1.0), (0.2, 1.2)):
        state = make_state("d0", taken_at_s=at_s, gain_decode=gain, gain_prefill=gain)
        dispatcher.handle(NodeReported(state), at_s)
    spec = view_of(dispatcher).spec
    assert spec.profile.step_base_s > A100_8B.step_base_s
    assert (spec.chunk_mode, spec.chunk_tokens_max) == (ChunkMode.STATIC, 512)


def test_a_strained_node_takes_nothing_until_it_is_well() -> None:
    dispatcher = dispatcher_of(**STATIC)
    dispatcher.handle(NodeStrained("d0", True), 0.0)
    assert veto_of(dispatcher) is Reason.TBT_VETO
    dispatcher.handle(NodeStrained("d0", False), 1.0)
    assert veto_of(dispatcher) is None


def test_a_node_that_reports_knows_better_than_its_gaps() -> None:
    dispatcher = dispatcher_of()
    dispatcher.handle(NodeReported(make_state("d0")), 0.0)
    dispatcher.handle(NodeStrained("d0", True), 0.0)
    assert veto_of(dispatcher) is None
    assert dispatcher.ignored_events == 1


def test_a_fixed_chunk_drains_a_backlog_whatever_the_streams_can_bear() -> None:
    """Two deflected prompts, of which the first begins to decode under an unreachable target."""

    class DeflectAll(LeastLoaded):
        def decide(self, request, cluster):
            remote = super().decide(request, cluster)
            return deflect_unguarded(request, cluster, remote, cluster.decode[0], Reason.COLOCATED)

    specs = [make_spec("p0", Role.PREFILL), make_spec("d0", **STATIC)]
    dispatcher = Dispatcher(DeflectAll(), specs)
    for name in ("r1", "r2"):
        arrived = RequestArrived(make_request(name, prompt_tokens=1024, tbt_s=0.001))
        orders = dispatcher.handle(arrived, 0.0)
        assert any(isinstance(order, StartDeflected) for order in orders)
    dispatcher.handle(FirstToken("r1"), 1.0)
    left_s = view_of(dispatcher).backlog_until_s - 1.0
    # 1024 tokens in two chunks of 512, at their mean context, beside one stream.
    steps_s = 2 * step_s(A100_8B, 1, 2048, 512, 0)
    assert 0.5 * steps_s < left_s < 2 * steps_s
