"""What a policy sees: cached prefixes, and node specifications that make no sense."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import make_request, make_spec
from spillway.core.errors import ConfigError
from spillway.core.types import NodeView


@given(st.integers(0, 5000), st.integers(0, 9000))
def test_at_least_the_last_prompt_token_is_always_computed(prompt: int, cached: int) -> None:
    request = make_request(prompt_tokens=prompt, cached_tokens_by_node=(("d0", cached),))
    assert request.uncached_tokens("d0") == max(1, prompt - cached)
    assert request.uncached_tokens("d1") == max(1, prompt)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step_tokens_max", 0),
        ("chunk_tokens_max", 0),
        ("chunk_tokens_multiple", 0),
        ("seqs_max", 0),
        ("kv_capacity_tokens", -1),
        ("link_bytes_per_s", 0.0),
        ("link_bytes_per_s", inf),
        ("link_base_s", -0.001),
        ("link_base_s", nan),
        ("tbt_margin_frac", 0.0),
        ("tbt_margin_frac", 1.01),
        ("tbt_margin_frac", nan),
    ],
)
def test_a_node_that_makes_no_sense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"node d7: {field}"):
        make_spec("d7", **{field: value})


def test_a_copied_view_has_every_field_of_the_first() -> None:
    view = NodeView(spec=make_spec())
    for at, field in enumerate(fields(NodeView)):
        if field.name != "spec":
            setattr(view, field.name, at)  # no two alike, and none at its default
    assert view.copied() == view
    assert view.copied() is not view
