"""Lazy reports say what periodic ones would have said, and only to a decision."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from simdrive import finish, job, round_node
from spillway.core.errors import ConfigError
from spillway.core.events import NodeReported, NodeState
from spillway.sim.port import Port
from spillway.sim.reports import Reports
from spillway.sim.run import Simulation
from spillway.sim.scenario import Scenario
from spillway.workload.seeds import stream
from spillway.workload.synthetic import family


class Desk:
    """One port and its reports, driven by hand."""

    def __init__(self, **options: float) -> None:
        self.told: list[tuple[NodeState, float]] = []
        self.port = Port(round_node())
        fields = {"period_s": 0.1, "delay_s": 0.0, "loss_frac": 0.0, "age_max_s": 1.0} | options
        self.reports = Reports(**fields, rng=stream(1, "reports"), tell=self._hear)

    def _hear(self, event: NodeReported, now_s: float) -> None:
        self.told.append((event.report, now_s))

    def decide(self, now_s: float) -> None:
        finish_quietly(self, now_s)
        self.reports.deliver([self.port], now_s)

    def change(self, now_s: float, what: Callable[[], object]) -> None:
        finish_quietly(self, now_s)
        if now_s >= self.port.next_tick_s:
            self.reports.before_change(self.port, now_s)
        what()

    def submit(self, request_id: str, now_s: float, output_tokens: int = 1000) -> None:
        order = job(request_id, 1000, output_tokens)
        self.change(now_s, lambda: self.port.node.submit_pulled(order, now_s))


def finish_quietly(desk: Desk, now_s: float) -> None:
    """Run the node up to `now_s` as the cluster does: a snapshot before every change."""
    node, port = desk.port.node, desk.port
    while (due_s := node.next_event_s()) <= now_s:
        if due_s >= port.next_tick_s:
            desk.reports.before_change(port, due_s)
        node.advance(due_s)


def test_a_decision_sees_the_state_at_the_last_tick_even_if_the_node_changed_since() -> None:
    desk = Desk()
    desk.submit("a", 0.02)
    desk.submit("b", 0.23)
    desk.decide(0.28)
    [(state, heard_s)] = desk.told
    assert (state.taken_at_s, heard_s, state.decode_seqs) == (pytest.approx(0.2), 0.28, 1)


def test_a_node_is_heard_at_most_once_per_tick_and_not_without_a_decision() -> None:
    desk = Desk()
    desk.submit("a", 0.02)
    for now_s in (0.31, 0.35, 0.39, 0.41):
        desk.decide(now_s)
    assert [round(state.taken_at_s, 9) for state, _ in desk.told] == [0.3, 0.4]


def test_an_idle_unchanged_node_is_heard_again_only_at_half_the_age_limit() -> None:
    desk = Desk(age_max_s=1.0)
    for tick in range(12):
        desk.decide(0.1 * tick + 0.05)
    assert [round(state.taken_at_s, 9) for state, _ in desk.told] == [0.0, 0.5, 1.0]


def test_a_quiet_node_that_changes_is_heard_at_the_next_tick() -> None:
    desk = Desk()
    desk.decide(0.05)
    desk.submit("a", 0.07)
    desk.decide(0.12)
    states = [state for state, _ in desk.told]
    assert [state.step for state in states] == [0, 2]
    assert states[1].taken_at_s == pytest.approx(0.1)


def test_a_delay_holds_reports_back_but_loses_none_of_their_ticks() -> None:
    desk = Desk(delay_s=0.25)
    desk.submit("a", 0.02)
    desk.submit("b", 0.33)
    desk.decide(0.2)
    assert desk.told == []
    desk.decide(0.47)  # the tick at 0.2 was sent off before `b` came
    [(state, _)] = desk.told
    assert (state.taken_at_s, state.decode_seqs) == (pytest.approx(0.2), 1)
    desk.decide(0.66)
    assert desk.told[-1][0].decode_seqs == 2


def test_lost_reports_are_counted_and_leave_the_last_word_standing() -> None:
    desk = Desk(loss_frac=1.0)
    for tick in range(10):
        desk.decide(0.1 * tick + 0.05)
    assert desk.told == []
    assert desk.reports.lost == 10


def test_a_dead_node_says_nothing_and_forgets_what_it_was_going_to_say() -> None:
    desk = Desk()
    desk.submit("a", 0.02)
    desk.change(0.15, lambda: desk.port.node.fail(0.15))
    desk.port.alive = False
    desk.decide(0.5)
    assert desk.told == []
    desk.port.alive = True
    desk.reports.restart(desk.port, 0.55)
    desk.decide(0.62)
    assert [state.kv_used_tokens for state, _ in desk.told] == [0]


def test_a_period_of_zero_means_no_reports() -> None:
    assert not Desk(period_s=0.0).reports.active


@pytest.mark.parametrize(
    "options", [{"period_s": -1.0}, {"delay_s": float("inf")}, {"loss_frac": 1.1}]
)
def test_options_without_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Desk(**options)


def test_the_desk_itself_lets_the_node_run() -> None:
    desk = Desk()
    desk.submit("a", 0.0, output_tokens=3)
    finish(desk.port.node)
    assert desk.port.node.idle


@pytest.mark.parametrize("changes", [{}, {"report_delay_s": 0.25, "report_loss_frac": 0.2}])
@pytest.mark.parametrize("policy", ["least-loaded", "headroom"])
def test_states_that_no_decision_reads_are_not_made_up_and_change_nothing(
    policy: str, changes: dict[str, float]
) -> None:
    rows = family("burst", 3, 20.0)
    scenario = Scenario(policy=policy, **changes)  # type: ignore[arg-type]
    lazy, eager = Simulation(scenario, rows, 1), Simulation(scenario, rows, 1)
    eager.cluster.reports.look_next = lambda at_s: None  # type: ignore[method-assign]
    assert lazy.run().records == eager.run().records
    made_up = [one.cluster.reports.materialised for one in (lazy, eager)]
    assert made_up[0] < made_up[1]
    if not changes:
        assert made_up[0] <= 1.25 * lazy.cluster.reports.told
