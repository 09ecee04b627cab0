"""The comparison table: the figures are those of the runs, and only true bests are marked."""

from __future__ import annotations

import io

import msgspec
import pytest

from report_samples import Sample, make_sample, make_series
from spillway.report.tables import (
    COLUMNS,
    comparison,
    gigabytes,
    milliseconds,
    percent,
    print_comparison,
    remarks,
    seconds,
)


def test_the_figures_are_those_of_the_runs(sample: Sample) -> None:
    grid = comparison(sample.runs)
    assert [row[0].text for row in grid.rows] == ["least-loaded", "kairos-paper", "headroom"]
    for run, row in zip(sample.runs, grid.rows, strict=True):
        ttft, tbt, kept = run.ttft_s, run.tbt_s, run.attainment
        expected = [ttft.p50, ttft.p95, ttft.p99, tbt.p99 * 1e3, run.late_tokens_frac * 100]
        expected += [run.deflected_frac * 100, kept.joint_99 * 100, kept.joint_mean * 100]
        expected += [run.kv_bytes_moved / 1e9]
        shown = [float(cell.text) for cell in row[1:]]
        assert shown == pytest.approx(expected, abs=0.051)
        assert shown[:3] == pytest.approx(expected[:3], abs=0.00051)


def test_the_best_of_a_column_is_marked_and_nothing_else(sample: Sample) -> None:
    grid = comparison(sample.runs)
    marked = {
        (row[0].text, grid.head[i].split("\n")[0], grid.head[i].split("\n")[1])
        for row in grid.rows
        for i, cell in enumerate(row)
        if cell.marked
    }
    # headroom has the shortest queues; the gaps are all the same; two meet every target.
    assert {policy for policy, *_ in marked} == {"headroom", "kairos-paper"}
    assert ("headroom", "TTFT", "p95 s") in marked
    assert ("kairos-paper", "TTFT", "p95 s") not in marked
    assert ("headroom", "joint", "(99 %)") in marked
    assert ("kairos-paper", "joint", "(99 %)") in marked
    assert not any(name in ("token", "late", "deflec-", "KV") for _, name, _ in marked)


def test_kv_that_nobody_counted_is_not_shown_as_none(sample: Sample) -> None:
    """A client of a live endpoint sees no KV; without deflection there must have been some."""
    run = sample.runs[0]
    untold = msgspec.structs.replace(run, kv_bytes_moved=0, deflected_frac=0.4)
    nothing_moved = msgspec.structs.replace(run, kv_bytes_moved=0, deflected_frac=1.0)
    shown = [row[-1].text for row in comparison([untold, nothing_moved]).rows]
    assert shown == ["–", "0.0"]


def test_a_single_run_has_no_best() -> None:
    grid = comparison(make_sample(make_series("headroom", 1.0)).runs)
    assert len(grid.rows) == 1
    assert not any(cell.marked for cell in grid.rows[0])


def test_no_run_is_a_table_without_rows() -> None:
    grid = comparison([])
    assert grid.rows == ()
    assert len(grid.head) == 1 + len(COLUMNS)


def test_a_run_that_finished_nothing_has_no_figures_and_wins_nothing() -> None:
    sample = make_sample(make_series("a", 1.0), make_series("b", 0.5, failed=40))
    rows = comparison(sample.runs).rows
    assert {cell.text for cell in rows[1][1:]} == {"–"}
    assert not any(cell.marked for row in rows for cell in row)


def test_what_did_not_finish_is_said() -> None:
    runs = make_sample(make_series("a", 1.0), make_series("b", 0.5, failed=3)).runs
    assert remarks(runs) == ["b: of 40 requests 3 failed."]
    stream = io.StringIO()
    print_comparison(runs, stream)
    assert "b: of 40 requests 3 failed." in stream.getvalue()
    assert "joint: requests that met" in stream.getvalue()


def test_the_plain_table_fits_a_terminal(sample: Sample) -> None:
    stream = io.StringIO()
    print_comparison(sample.runs, stream)
    assert max(map(len, stream.getvalue().splitlines())) <= 80


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (seconds(0.4123), "0.412"),
        (seconds(31.2), "31.200"),
        (milliseconds(0.0542), "54.2"),
        (percent(0.0), "0.0"),
        (percent(0.00321), "0.32"),
        (percent(0.00001), "<0.01"),
        (percent(0.541), "54.1"),
        (percent(0.9997), "99.97"),
        (percent(0.99999), ">99.99"),
        (percent(1.0), "100.0"),
        (gigabytes(3.44e9), "3.4"),
        (gigabytes(1.21e12), "1210"),
    ],
)
def test_how_figures_are_written(text: str, expected: str) -> None:
    assert text == expected
