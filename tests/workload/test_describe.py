"""The statistics of a workload, against cases whose figures are known beforehand."""

from __future__ import annotations

import pytest

from spillway.core.errors import ConfigError
from spillway.workload.arrivals import Poisson
from spillway.workload.describe import describe, shared_prefix_frac
from spillway.workload.row import Row
from spillway.workload.seeds import stream


def test_the_figures_of_a_metronome():
    figures = describe([Row(float(at), 100, 10) for at in range(601)])
    assert (figures.requests, figures.sessions, figures.span_s) == (601, 0, 600.0)
    assert figures.gap_cv == 0.0
    assert [(one.window_s, one.peak_over_mean, one.dispersion) for one in figures.burstiness] == [
        (1.0, 1.0, 0.0),
        (10.0, 1.0, 0.0),
        (60.0, 1.0, 0.0),
    ]
    assert figures.prompt_output_ratio == figures.median_ratio == 10.0
    assert figures.pearson_correlation is figures.spearman_correlation is None  # nothing varies
    assert figures.shared_prefix_frac is None


def test_poisson_arrivals_have_cv_and_dispersion_1():
    times_s = Poisson().draw(stream(1, "describe"), 20.0, 600.0)
    figures = describe([Row(at_s, 100, 10) for at_s in times_s])
    assert figures.gap_cv == pytest.approx(1.0, abs=0.03)
    assert figures.rate_per_s == pytest.approx(20.0, rel=0.05)
    assert [one.dispersion for one in figures.burstiness[:2]] == pytest.approx([1.0, 1.0], abs=0.3)


def test_lengths_and_their_relation():
    rows = [Row(float(at), at, at * at) for at in range(1, 101)] + [Row(101.0, 40_000, 1)]
    figures = describe(rows)
    prompt = figures.prompt_tokens
    assert (prompt.p50, prompt.max, prompt.total) == (51, 40_000, 45_050)
    assert figures.beyond_32k_frac == 1 / 101
    assert figures.longest_share_frac == pytest.approx((40_000 + 97 + 98 + 99 + 100) / 45_050)
    alone = describe(rows[:100])
    assert alone.spearman_correlation == pytest.approx(1.0)
    assert alone.pearson_correlation is not None
    assert 0.9 < alone.pearson_correlation < 1.0
    assert alone.median_ratio == pytest.approx((1 / 50 + 1 / 51) / 2)


def test_equal_lengths_share_their_rank():
    rows = [Row(float(at), prompt, prompt) for at, prompt in enumerate((5, 5, 5, 9))]
    assert describe(rows).spearman_correlation == pytest.approx(1.0)


def test_shared_prefixes_end_at_the_first_block_not_seen():
    rows = [
        Row(0.0, 40, 1, prefix_blocks=(1, 2, 3), block_tokens=16),
        Row(1.0, 40, 1, prefix_blocks=(1, 2, 3), block_tokens=16),  # the last block is partial
        Row(2.0, 64, 1, prefix_blocks=(1, 9, 3, 4), block_tokens=16),
        Row(3.0, 100, 1),
    ]
    assert shared_prefix_frac(rows) == (40 + 16) / 244


@pytest.mark.parametrize("rows", [[Row(3.0, 5, 6)], [Row(3.0, 5, 6)] * 2])
def test_requests_without_a_span_have_no_rate(rows: list[Row]):
    figures = describe(rows)
    assert figures.rate_per_s is figures.gap_cv is figures.prompt_tokens_per_s is None
    assert figures.burstiness == []
    assert figures.prompt_tokens.mean == 5


def test_no_requests_have_no_figures():
    with pytest.raises(ConfigError, match="without requests"):
        describe([])
