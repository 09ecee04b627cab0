"""Makes prompts of a wanted length: the same request id, the same prompt.

Rows that share leading blocks get prompts that share the same leading tokens, so a prefix cache
finds in them what the trace says it should.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from spillway.workload.row import Row
from spillway.workload.seeds import stream

# Ids that are ordinary tokens in every vocabulary of 32,000 or more: above the special and byte
# tokens at its start, far from those at its end.
TOKEN_ID_FIRST = 1_000
TOKEN_ID_MASK = 0x3FFF

# Short common words: one token each in the usual vocabularies, 4 bytes with their space.
WORDS = (
    "the and for are but not you all any can had her was one our out day get has him his how man "
    "new now old see two way who boy did its let put say she too use big end far few got off own "
    "red run set six ten top try war yes ago air art ask bad bed box car cut dog eat eye fly fun"
)


def token_ids(row: Row, request_id: str) -> list[int]:
    """Return a prompt of exactly `row.prompt_tokens` token ids. About 50 ns a token."""
    ids: list[int] = []
    for name, draw_tokens, tokens in _pieces(row, request_id):
        drawn = array("H", stream(0, name).randbytes(2 * draw_tokens))
        ids += [TOKEN_ID_FIRST + (value & TOKEN_ID_MASK) for value in drawn[:tokens]]
    return ids


def text(row: Row, request_id: str) -> str:
    """Return a prompt of `row.prompt_tokens` short words: about as many tokens, 4 bytes each."""
    vocabulary = WORDS.split()
    words: list[str] = []
    for name, draw_tokens, tokens in _pieces(row, request_id):
        drawn = stream(0, name).randbytes(draw_tokens)
        words += [vocabulary[value % len(vocabulary)] for value in drawn[:tokens]]
    return " ".join(words)


def _pieces(row: Row, request_id: str) -> Iterator[tuple[str, int, int]]:
    """Yield (stream name, tokens to draw, tokens to use) for each block, then for the rest.

    A partial block draws as much as a full one, so that it begins like the full one.
    """
    left_tokens = row.prompt_tokens
    for block in row.prefix_blocks:
        yield f"prompt.block.{block}", row.block_tokens, min(row.block_tokens, left_tokens)
        left_tokens -= min(row.block_tokens, left_tokens)
    if left_tokens:
        yield f"prompt.request.{request_id}", left_tokens, left_tokens
