"""Prompts: exact, repeatable, and sharing what the trace says they share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spillway.loadgen.prompts import TOKEN_ID_FIRST, TOKEN_ID_MASK, WORDS, text, token_ids
from spillway.workload.row import Row

lengths = st.integers(1, 3_000)


@given(lengths, st.lists(st.integers(0, 5), max_size=4), st.integers(1, 512))
def test_token_prompts_have_exactly_the_length_asked(
    prompt_tokens: int, blocks: list[int], block_tokens: int
):
    row = Row(0.0, prompt_tokens, 1, prefix_blocks=tuple(blocks), block_tokens=block_tokens)
    ids = token_ids(row, "r")
    assert len(ids) == prompt_tokens
    assert all(TOKEN_ID_FIRST <= value <= TOKEN_ID_FIRST + TOKEN_ID_MASK < 32_000 for value in ids)
    assert len(text(row, "r").split()) == prompt_tokens


def test_the_same_id_gives_the_same_prompt_and_another_gives_another():
    row = Row(0.0, 50, 1)
    assert token_ids(row, "a") == token_ids(row, "a") != token_ids(row, "b")
    assert text(row, "a") == text(row, "a") != text(row, "b")


def test_shared_blocks_are_shared_tokens_and_the_rest_is_not():
    long = Row(0.0, 40, 1, prefix_blocks=(7, 8), block_tokens=16)
    same = Row(0.0, 40, 1, prefix_blocks=(7, 9), block_tokens=16)
    partial = Row(0.0, 21, 1, prefix_blocks=(7, 8), block_tokens=16)
    for make in (token_ids, lambda row, name: text(row, name).split()):
        first, second, short = make(long, "a"), make(same, "b"), make(partial, "c")
        assert first[:16] == second[:16] == short[:16]
        assert first[16:21] == short[16:]
        assert first[16:32] != second[16:32]
        assert first[32:] != make(long, "d")[32:]


def test_words_are_four_bytes_with_their_space():
    words = WORDS.split()
    assert {len(word) for word in words} == {3}
    assert len(set(words)) == len(words)
    assert len(text(Row(0.0, 100, 1), "a")) == 4 * 100 - 1
