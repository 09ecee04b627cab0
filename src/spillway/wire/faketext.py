"""What a simulated engine writes: text that depends on the prompt and on nothing else.

Token i of the answer to a prompt with CRC-32 d reads ` t<d as 8 hex digits>-<i>`. Whoever knows the
prompt can therefore tell a lost, doubled, reordered or foreign token from a right one, across any
number of proxies and retries.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from zlib import crc32

from spillway.core.errors import RequestError


def prompt_digest(prompt: Sequence[int] | str | bytes) -> int:
    """Return the CRC-32 of a prompt: of its UTF-8 bytes, or of its token ids as little-endian u32.

    Raises RequestError when a token id is no integer from 0 to 2^32 - 1.
    """
    if isinstance(prompt, str):
        prompt = prompt.encode()
    if isinstance(prompt, bytes):
        return crc32(prompt)
    try:
        return crc32(struct.pack(f"<{len(prompt)}I", *prompt))
    except struct.error as error:
        raise RequestError(
            f"a prompt token id must be an integer from 0 to 4294967295: {error}", param="prompt"
        ) from error


def expected_token(digest: int, index: int) -> str:
    """Return the text of output token `index` (from 0) for a prompt with this digest."""
    return f" t{digest:08x}-{index}"
