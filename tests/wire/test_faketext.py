"""The text of simulated engines: a function of the prompt and the token's index alone."""

from __future__ import annotations

from zlib import crc32

import pytest

from spillway.core.errors import RequestError
from spillway.wire.faketext import expected_token, prompt_digest


def test_the_digest_is_of_little_endian_words_or_utf8_bytes():
    assert prompt_digest([1, 258]) == crc32(b"\x01\0\0\0\x02\x01\0\0")
    assert prompt_digest("é") == prompt_digest(b"\xc3\xa9") == crc32(b"\xc3\xa9")
    assert prompt_digest([]) == prompt_digest("") == 0


def test_order_and_every_token_matter():
    digests = {prompt_digest(ids) for ids in ([1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 3, 0])}
    assert len(digests) == 4


def test_tokens_read_as_documented():
    assert expected_token(0xAB, 0) == " t000000ab-0"
    assert expected_token(prompt_digest([1]), 12) == f" t{crc32(bytes([1, 0, 0, 0])):08x}-12"


@pytest.mark.parametrize("ids", [[-1], [2**32], [1.5], ["a"], [None]])
def test_ids_that_are_none_are_the_clients_error(ids: list[object]):
    with pytest.raises(RequestError, match="token id") as caught:
        prompt_digest(ids)
    assert caught.value.param == "prompt"
