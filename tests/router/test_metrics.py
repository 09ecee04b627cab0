"""The metrics page: every name documented, every value readable."""

from __future__ import annotations

import re

import pytest

from spillway.router.metrics import METRICS, SECONDS_BOUNDS, Histogram, RouterMetrics, render

SAMPLE = re.compile(r'^([a-z_]+)(\{([a-z]+="(?:[^"\\\n]|\\.)*",?)+\})? (\S+)$')


def parsed(text: str) -> dict[str, float]:
    values = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.match(line)
            assert match, line
            values[line.rpartition(" ")[0]] = float(match[4])
    return values


def test_counters_and_labels_are_rendered() -> None:
    metrics = RouterMetrics()
    metrics.requests["prefill", "finished"] += 3
    metrics.decisions["no_pressure"] += 2
    metrics.upstream_errors['no"de\\1', "broken_off"] += 1
    text = render(metrics.counted(), metrics.histograms())
    values = parsed(text)
    assert values['spillway_requests_total{route="prefill",outcome="finished"}'] == 3
    assert values['spillway_decisions_total{reason="no_pressure"}'] == 2
    assert r'{node="no\"de\\1",kind="broken_off"} 1' in text


def test_every_metric_is_documented_once() -> None:
    text = render({}, RouterMetrics().histograms())
    assert len(re.findall(r"^# HELP ", text, re.M)) == len(METRICS)
    assert all(text.count(f"# TYPE {name} {kind}\n") == 1 for name, (kind, *_) in METRICS.items())


def test_a_name_outside_the_table_is_a_bug() -> None:
    with pytest.raises(KeyError):
        render({"spillway_surprise": [((), 1)]}, {})


def test_a_histogram_is_cumulative_with_inclusive_bounds() -> None:
    histogram = Histogram()
    for value_s in (SECONDS_BOUNDS[3], SECONDS_BOUNDS[3] * 1.0001, 1e9):
        histogram.observe(value_s)
    lines = list(histogram.lines("h"))
    counts = [int(line.rpartition(" ")[2]) for line in lines if "_bucket" in line]
    assert counts == sorted(counts)
    assert (counts[2], counts[3], counts[4], counts[-2], counts[-1]) == (0, 1, 2, 2, 3)
    assert lines[-1] == "h_count 3"
    assert histogram.count == 3
