"""Learned output lengths: the running quantile against sorting what the window holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.lengths import CLASSES_MAX, WINDOW, OutputLengths


@given(
    st.lists(st.integers(0, 50), max_size=WINDOW + 60),
    st.sampled_from((0.0, 0.5, 0.7, 1.0)),
)
def test_the_quantile_is_that_of_the_last_completions(seen: list[int], frac: float) -> None:
    lengths = OutputLengths(frac)
    for output_tokens in seen:
        lengths.add("chat", output_tokens)
    if not seen:
        assert lengths.by_class == {}
        return
    window = sorted(seen[-WINDOW:])
    assert lengths.by_class["chat"] == window[int(frac * (len(window) - 1))]


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


@pytest.mark.parametrize("at", [0, 1])
def test_the_mapping_that_policies_hold_is_updated_in_place(at: int) -> None:
    lengths = OutputLengths()
    seen_by_policies = lengths.by_class
    for output_tokens in range(at + 1):
        lengths.add("chat", output_tokens)
    assert seen_by_policies is lengths.by_class
    assert "chat" in seen_by_policies
