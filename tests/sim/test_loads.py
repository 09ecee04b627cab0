"""The same traffic at several rates."""

from __future__ import annotations

import pytest

from spillway.core.errors import ConfigError
from spillway.sim.loads import Source
from spillway.workload.row import Row
from spillway.workload.synthetic import family

TRACE = tuple(Row(float(at), 100 + at, 5) for at in range(101))


def rate_per_s(rows: list[Row]) -> float:
    return len(rows) / rows[-1].arrival_s


def test_a_family_is_drawn_at_the_rate() -> None:
    rows = Source(family="chat").draw(1, 500, 25.0)
    assert 400 < len(rows) < 600
    assert rate_per_s(rows) == pytest.approx(25.0, rel=0.1)


def test_a_window_of_a_trace_is_brought_to_the_rate_and_keeps_its_shape() -> None:
    source = Source(rows=TRACE)
    slow, fast = source.draw(1, 20, 2.0), source.draw(1, 20, 8.0)
    assert len(slow) == len(fast) == 20
    assert rate_per_s(slow) == pytest.approx(2.0)
    assert rate_per_s(fast) == pytest.approx(8.0)
    assert [row.prompt_tokens for row in slow] == [row.prompt_tokens for row in fast]
    assert slow[7].arrival_s == pytest.approx(4 * fast[7].arrival_s)


def test_seeds_pick_different_windows_and_the_same_seed_the_same() -> None:
    source = Source(rows=TRACE)
    starts = {source.draw(seed, 20, 2.0)[0].prompt_tokens for seed in range(10)}
    assert len(starts) > 3
    assert source.draw(4, 20, 2.0) == source.draw(4, 20, 2.0)


def test_a_trace_shorter_than_the_run_is_used_whole() -> None:
    assert len(Source(rows=TRACE[:5]).draw(1, 20, 2.0)) == 5


def test_the_search_starts_from_what_is_usual() -> None:
    assert Source(rows=TRACE).usual_rate_per_s() == pytest.approx(1.01)
    assert Source(family="chat").usual_rate_per_s() == 12.0


def test_a_draw_without_a_request_is_refused() -> None:
    source = Source(family="chat")
    empty = [seed for seed in range(40) if not family("chat", seed, 1.0, 1.0)]
    assert empty, "one request expected, so e^-1 of the seeds draw none"
    with pytest.raises(ConfigError, match="ask for more requests"):
        source.draw(empty[0], 1, 1.0)
