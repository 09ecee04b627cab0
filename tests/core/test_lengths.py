"""Learned output lengths: the running quantile against sorting what the window holds."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from spillway.core.lengths import CLASSES_MAX, WINDOW, OutputLengths


@given(
    st.integers(0, 2 * WINDOW + 60),
    st.integers(0, 2**32),
    st.sampled_from((0.0, 0.5, 0.7, 1.0)),
)
def test_the_quantile_is_that_of_the_last_completions(count: int, seed: int, frac: float) -> None:
    drawn = Random(seed)
    seen = [drawn.randint(0, 500) for _ in range(count)]
    lengths = OutputLengths(frac)
    for output_tokens in seen:
        lengths.add("chat", output_tokens)
    window = sorted(seen[-WINDOW:])
    expected = {"chat": window[int(frac * (len(window) - 1))]} if seen else {}
    assert lengths.by_class == expected


def test_old_completions_leave_the_window() -> None:
    lengths = OutputLengths()
    for output_tokens in [9000] * WINDOW + [10] * WINDOW:
        lengths.add("chat", output_tokens)
    assert lengths.by_class == {"chat": 10}


def test_classes_are_apart_and_their_number_is_bounded() -> None:
    lengths = OutputLengths()
    for at in range(CLASSES_MAX + 5):
        lengths.add(f"class-{at}", at)
    assert len(lengths.by_class) == CLASSES_MAX
    assert lengths.by_class["class-7"] == 7
    assert f"class-{CLASSES_MAX}" not in lengths.by_class


def test_the_mapping_that_policies_hold_is_updated_in_place() -> None:
    lengths = OutputLengths()
    seen_by_policies = lengths.by_class
    lengths.add("chat", 7)
    assert seen_by_policies == {"chat": 7}
