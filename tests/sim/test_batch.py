"""The decode batch's sums and range queries against a loop over its sequences."""

from __future__ import annotations

import random
from math import inf

import pytest

from simdrive import job
from spillway.sim import batch as batch_module
from spillway.sim.batch import DecodeBatch
from spillway.sim.residents import Phase, Resident
from spillway.stats import GapHistogram


def resident(order: int, output_tokens: int = 1000, slo_tbt_s: float = inf) -> Resident:
    one = Resident(
        job(f"r{order}", 100, output_tokens, slo_tbt_s=slo_tbt_s), order, Phase.QUEUED, True
    )
    one.generated_tokens = 1
    return one


def test_figures_of_a_sequence_are_those_of_the_steps_it_was_there_for() -> None:
    """Random joins, leaves and ramps; each sequence also keeps the list of its own gaps."""
    rng = random.Random(5)
    batch = DecodeBatch(GapHistogram())
    present: dict[Resident, list[float]] = {}
    checked = 0
    for turn in range(400):
        action = rng.random()
        if action < 0.4 or not present:
            one = resident(turn, slo_tbt_s=rng.choice([0.01, 0.02, 0.03]))
            batch.add(one)
            batch.follow(one)
            present[one] = []
        elif action < 0.6:
            one = rng.choice(list(present))
            gaps = present.pop(one)
            batch.remove(one)
            late = sum(gap > one.job.slo_tbt_s for gap in gaps)
            assert (one.generated_tokens, one.gaps_late) == (1 + len(gaps), late)
            assert one.gap_max_s == pytest.approx(max(gaps, default=0.0))
            checked += 1
        else:
            first_s, slope_s = rng.uniform(0.005, 0.04), rng.choice([0.0, 1e-4])
            steps = rng.randint(1, 20)
            batch.run(first_s, slope_s, steps)
            for gaps in present.values():
                gaps += [first_s + slope_s * i for i in range(steps)]
        targets = [one.job.slo_tbt_s for one in present]
        assert batch.tbt_s_min == min(targets, default=inf)
        assert batch.context_tokens == sum(101 + len(gaps) for gaps in present.values())
    assert checked > 50


def test_sequences_finish_at_their_last_token_in_order() -> None:
    batch = DecodeBatch(GapHistogram())
    for order, output_tokens in enumerate((5, 3, 5)):
        one = resident(order, output_tokens)
        batch.add(one)
        batch.follow(one)
    assert batch.steps_to_finish() == 2
    batch.run(0.01, 0.0, 2)
    assert [one.order for one in batch.take_finished()] == [1]
    assert batch.steps_to_finish() == 2
    batch.run(0.01, 0.0, 2)
    assert [one.order for one in batch.take_finished()] == [0, 2]
    assert (batch.seqs, batch.context_tokens) == (0, 0)


def test_a_sequence_that_came_back_is_not_finished_by_its_old_entry() -> None:
    batch = DecodeBatch(GapHistogram())
    stays, returns = resident(0, 100), resident(1, 4)
    for one in (stays, returns):
        batch.add(one)
        batch.follow(one)
    batch.run(0.01, 0.0, 1)
    batch.remove(returns)
    returns.phase = Phase.QUEUED
    batch.run(0.01, 0.0, 10)  # past the step at which it would have finished
    assert batch.take_finished() == []
    batch.add(returns)
    returns.generated_tokens += 1
    batch.follow(returns)
    assert batch.steps_to_finish() == 1


def test_the_first_token_of_a_pulled_sequence_is_no_gap() -> None:
    gaps = GapHistogram()
    batch = DecodeBatch(gaps)
    pulled = resident(0)
    pulled.generated_tokens = 0
    batch.add(pulled)
    batch.fresh.append(pulled)
    batch.run(0.5, 0.0, 1)
    assert gaps.count == 0


def test_the_stack_of_maxima_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "PEAKS_MAX", 10)
    batch = DecodeBatch(GapHistogram())
    length_s = 1.0
    residents: list[Resident] = []
    for order in range(100):
        one = resident(order)
        batch.add(one)
        batch.follow(one)
        residents.append(one)
        length_s *= 0.99
        batch.run(length_s, 0.0, 1)
        if len(residents) > 5:
            oldest = residents.pop(0)
            batch.remove(oldest)
            assert oldest.gap_max_s == pytest.approx(length_s / 0.99**5)
            oldest.phase = Phase.GONE
    assert len(batch._peak_s) <= 11
