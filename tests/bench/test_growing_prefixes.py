"""What rounds taken in turns say: medians, and ratios within each round."""

import pytest


def test_gaps_are_those_that_end_in_the_time_given():
    from growing_prefixes import Stream

    stream = Stream([0.0, 1.0, 3.0, 3.5, 7.0])
    assert stream.gaps_s(1.0, 3.5) == [2.0, 0.5]
    assert stream.gaps_s(7.0, 9.0) == []


def test_ratios_are_of_ways_in_one_round():
    from growing_prefixes import Round, table, way

    def rounds(*ttft_s):
        return [Round(one, [one / 10, one / 10], [0.01], 1) for one in ttft_s]

    small, whole = way(272, 0), way(2048, 0)
    rows = table({whole: rounds(1.0, 20.0, 3.0), small: rounds(2.0, 10.0, 6.0)}, small)
    assert [row["how"] for row in rows] == ["whole, steps of 2048", "whole, steps of 272"]
    assert [row["ttft_ms"] for row in rows] == [3000, 6000]
    assert rows[0]["ttft_ratio"] == pytest.approx(0.5)
    assert rows[0]["gap_p99_ratio"] == pytest.approx(0.5)
    assert rows[0]["gap_p99_ms_range"] == (100.0, 2000.0)
    assert rows[1]["ttft_ratio"] == 1.0
    assert way(2048, 256) == "prefixes of 256, steps of 2048"
