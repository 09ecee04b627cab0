"""Choosing the decision that shows best what deflection is."""

from __future__ import annotations

from msgspec.structs import replace

from report_samples import make_decision
from spillway.cli.example import best_example, saved_s
from spillway.wire.decisions import DecisionRecord, PlanRecord


def in_steps(record: DecisionRecord, steps: int) -> DecisionRecord:
    plan = PlanRecord(chunks=((512, steps),), execute_s=0.1, step_s_max=0.05)
    return replace(record, decision=replace(record.decision, plan=plan))


def with_wait(record: DecisionRecord, own_queue_s: float) -> DecisionRecord:
    estimate = record.decision.estimate
    assert estimate is not None
    slower = replace(estimate, queue_s=own_queue_s)
    return replace(record, decision=replace(record.decision, estimate=slower))


def kept(record: DecisionRecord) -> DecisionRecord:
    return replace(record, decision=replace(record.decision, route="prefill"))


def test_what_is_saved_is_against_the_best_prefill_path() -> None:
    record = make_decision()
    remotes_s = [
        one.estimate.total_s
        for one in record.decision.candidates
        if one.prefill_node_id and one.estimate
    ]
    assert record.decision.estimate is not None
    assert saved_s(record) == min(remotes_s) - record.decision.estimate.total_s > 0


def test_the_largest_saving_is_chosen() -> None:
    small, large = with_wait(make_decision(), 0.9), with_wait(make_decision(), 0.0)
    assert best_example([small, large]) is large
    assert best_example([large, small]) is large


def test_a_prompt_of_several_steps_shows_more_than_one_of_one_step() -> None:
    whole = in_steps(with_wait(make_decision(), 0.0), 1)
    stepped = in_steps(with_wait(make_decision(), 0.5), 4)
    assert best_example([whole, stepped]) is stepped


def test_only_deflections_count() -> None:
    assert best_example([kept(make_decision())]) is None
    assert best_example([]) is None
