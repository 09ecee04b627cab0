"""Prompt lengths: exact for token ids, learned for text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spillway.core.errors import RequestError
from spillway.router.tokens import RATIOS_MAX, PromptRuler
from spillway.wire.openai import parse_body


def measure(prompt, ruler=None, *, is_chat=False, model="m", **fields) -> tuple[int, int]:
    name = "messages" if is_chat else "prompt"
    body = json.dumps({"model": model, name: prompt, **fields}).encode()
    return (ruler or PromptRuler()).measure(parse_body(body, is_chat=is_chat))


@given(
    st.lists(st.lists(st.integers(0, 200_000), min_size=1) | st.integers(0, 200_000), min_size=1),
    st.sampled_from([None, 1]),
)
def test_token_ids_are_counted_exactly(prompt, indent) -> None:
    count = sum(len(part) if isinstance(part, list) else 1 for part in prompt)
    body = json.dumps({"model": "m", "prompt": prompt}, indent=indent).encode()
    assert PromptRuler().measure(parse_body(body, is_chat=False)) == (count, 0)


@pytest.mark.parametrize(
    "prompt", [[], [1.5], [1, None], [True], [1, -1], [1, "a"], ["a", 1], [{"a": 1}], [[1], ["a"]]]
)
def test_a_list_of_anything_else_is_refused(prompt) -> None:
    with pytest.raises(RequestError, match="prompt must be") as caught:
        measure(prompt)
    assert caught.value.param == "prompt"


def test_text_is_four_bytes_to_a_token_until_something_is_learned() -> None:
    assert measure("x" * 398) == (100, 400)
    assert measure(["x" * 198, "y" * 196]) == (100, 402)
    assert measure("")[0] == 1


def test_tools_count_as_prompt() -> None:
    plain = measure([{"role": "user"}], is_chat=True)[1]
    tools = [{"name": "x" * 50}]
    with_tools = measure([{"role": "user"}], is_chat=True, tools=tools)[1]
    assert with_tools == plain + len(json.dumps(tools))


def test_the_ratio_is_learned_per_model_and_endpoint() -> None:
    ruler = PromptRuler()
    for _ in range(50):
        ruler.learn("m", False, 10_000, 5_000)
    assert measure("x" * 998, ruler)[0] == pytest.approx(500, rel=0.01)
    assert measure("x" * 998, ruler, model="other")[0] == 250
    assert measure(["x" * 994], ruler, is_chat=True)[0] == pytest.approx(250, rel=0.01)


def test_the_ratio_follows_a_change_of_prompts() -> None:
    ruler = PromptRuler()
    for _ in range(1000):
        ruler.learn("m", False, 10_000, 5_000)
    for _ in range(300):
        ruler.learn("m", False, 10_000, 2_000)
    assert measure("x" * 998, ruler)[0] == pytest.approx(200, rel=0.1)


def test_nothing_is_learned_from_exact_prompts_or_missing_usage() -> None:
    ruler = PromptRuler()
    ruler.learn("m", False, 0, 5_000)
    ruler.learn("m", False, 5_000, 0)
    assert measure("x" * 398, ruler)[0] == 100


def test_invented_model_names_share_one_ratio() -> None:
    ruler = PromptRuler()
    for number in range(RATIOS_MAX + 50):
        ruler.learn(f"m{number}", False, 10_000, 5_000)
    assert len(ruler._ratios) == RATIOS_MAX
    assert measure("x" * 998, ruler, model="m9999")[0] == pytest.approx(500, rel=0.02)
