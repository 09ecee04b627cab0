"""What the rounds of an alternating measurement say: ratios within them, and who won."""

import pytest


def compared(ours, theirs, **options):
    from comparison import Comparison

    samples = {"spillway": ours, "peer": theirs, "direct": [1.0] * len(ours)}
    return Comparison("P/D", "some load", "CPU", "us", samples, **options)


def test_a_ratio_is_taken_within_each_round():
    one = compared([10.0, 100.0, 30.0], [20.0, 100.0, 30.0])
    assert one.ratios() == {"peer": (1.0, 0.5, 1.0)}
    assert one.spread("spillway") == (30.0, 10.0, 100.0)


@pytest.mark.parametrize(
    ("ours", "better", "verdict"),
    [
        ([5.0, 9.0], "less", "won"),
        ([5.0, 11.0], "less", "level"),
        ([12.0, 11.0], "less", "lost"),
        ([12.0, 11.0], "more", "won"),
        ([5.0, 9.0], "more", "lost"),
        ([5.0, 9.0], "equal", ""),
    ],
)
def test_who_wins_is_what_all_rounds_agree_on(ours, better, verdict):
    assert compared(ours, [10.0, 10.0], better=better).verdict("peer") == verdict


@pytest.mark.parametrize(
    ("better", "target", "missed"),
    [("less", 0.5, True), ("less", 0.9, False), ("more", 0.5, False), ("more", 5.0, True)],
)
def test_a_target_is_for_the_median_ratio(better, target, missed):
    assert compared([8.0], [10.0], better=better, targets={"peer": target}).missed("peer") == missed


def test_rounds_without_a_value_or_below_the_noise_give_no_ratio():
    assert compared([None, 2.0, 2.0], [1.0, 1.0, 4.0]).ratios()["peer"] == (1.25, 0.5, 2.0)
    assert compared([1.0, 1.0, 1.0], [None, -3.0, 4.0]).ratios() == {}
    assert compared([1.0, 1.0, 1.0], [None, -3.0, 4.0]).verdict("peer") == ""


def test_a_result_file_keeps_every_sample():
    kept = compared([1.0, None], [2.0, 2.0], targets={"peer": 0.4}).as_json()
    assert kept["samples"]["spillway"] == [1.0, None]
    assert kept["programs"]["peer"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert kept["ratios"]["peer"]["median"] == 0.5
    assert kept["ratios"]["peer"]["verdict"] == "won"
    assert kept["ratios"]["peer"]["missed"]
