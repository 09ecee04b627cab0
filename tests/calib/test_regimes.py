"""Kinds of steps, their words, and what counts as a repeat."""

from __future__ import annotations

import pytest

from spillway.calib.regimes import (
    Regime,
    chunk_context_tokens,
    context_range,
    context_ranges,
    regime,
    region,
    shape,
)
from spillway.calib.samples import Sample
from spillway.core.latency import token_pairs


def a_step(seqs: int, kv_tokens: int, chunk: int = 0, context: int = 0) -> Sample:
    return Sample(
        decode_seqs=seqs,
        kv_tokens=kv_tokens,
        prefill_tokens=chunk,
        prefill_token_pairs=token_pairs(chunk, context),
        step_s=0.01,
    )


@pytest.mark.parametrize(
    ("sample", "kind"),
    [
        (a_step(4, 400), Regime.DECODE),
        (a_step(4, 400, 256), Regime.SMALL),
        (a_step(4, 400, 257), Regime.LARGE),
        (a_step(0, 0, 64), Regime.PREFILL),
    ],
)
def test_regimes(sample: Sample, kind: Regime) -> None:
    assert regime(sample) is kind


def test_the_context_before_a_chunk_is_recovered_from_its_pairs() -> None:
    for chunk, context in ((1, 0), (512, 0), (512, 7000), (3, 12)):
        assert chunk_context_tokens(a_step(1, 9, chunk, context)) == pytest.approx(context)
    assert chunk_context_tokens(a_step(1, 9)) == 0.0


def test_ranges_ascend_and_every_context_has_one() -> None:
    ranges = context_ranges()
    assert ranges[0] == "context up to 512"
    assert ranges[-1] == "context above 8,192"
    found = [context_range(a_step(2, 2 * tokens)) for tokens in (1, 512, 513, 8192, 8193, 10**6)]
    assert found == [ranges[0], ranges[0], ranges[1], ranges[2], ranges[3], ranges[3]]
    # The longer of the two contexts decides.
    assert context_range(a_step(1, 100, 16, 9000)) == ranges[3]


def test_a_region_reads_as_words() -> None:
    assert str(region(a_step(1, 100))) == "decode only, context up to 512"


def test_repeats_have_the_same_shape_while_their_context_grows_a_little() -> None:
    assert shape(a_step(8, 8000)) == shape(a_step(8, 8008))
    assert shape(a_step(8, 8000)) != shape(a_step(8, 9000))
    assert shape(a_step(8, 8000)) != shape(a_step(7, 8000))
    assert shape(a_step(8, 8000, 64)) != shape(a_step(8, 8000, 65))
    assert shape(a_step(8, 8000, 64)) != shape(a_step(8, 8000, 64, 2048))
