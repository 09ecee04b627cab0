"""Names of prompts: full blocks only, small ones taken together."""

from __future__ import annotations

from spillway.sim.prompt_name import BLOCK_TOKENS_MIN, name_prompt
from spillway.workload.row import Row


def named(prompt_tokens: int, ids: tuple[int, ...], block_tokens: int) -> tuple[int, int]:
    name = name_prompt(Row(0.0, prompt_tokens, 1, prefix_blocks=ids, block_tokens=block_tokens))
    return len(name.chain), name.block_tokens


def test_a_partial_last_block_is_not_shared() -> None:
    assert named(1100, (1, 2, 3), 512) == (2, 512)
    assert named(1024, (1, 2), 512) == (2, 512)
    assert named(5000, (1, 2), 512) == (2, 512)  # the tail has no ids


def test_small_blocks_are_taken_together() -> None:
    together = BLOCK_TOKENS_MIN // 16
    assert named(16 * 9, tuple(range(9)), 16) == (9 // together, BLOCK_TOKENS_MIN)
    assert named(1000, tuple(range(10)), 100) == (10, 100)


def test_names_agree_as_far_as_all_blocks_within_do() -> None:
    one, other = tuple(range(12)), (*range(6), 99, *range(7, 12))
    first, second = (
        name_prompt(Row(0.0, 192, 1, prefix_blocks=ids, block_tokens=16)).chain
        for ids in (one, other)
    )
    assert (len(first), first[0] == second[0], first[1] == second[1]) == (3, True, False)
