"""How long a prompt is, without tokenising on the event loop.

Token ids are counted exactly. Text is measured in bytes and multiplied by the tokens per byte that
this model's prompts had so far, learned from the `usage` of finished legs.
"""

from __future__ import annotations

import msgspec

from spillway.core.errors import RequestError
from spillway.wire.openai import ParsedBody

TOKENS_PER_BYTE_DEFAULT = 0.25
# The prior counts as much as this many bytes of real prompts, and sums halve beyond the memory.
PRIOR_BYTES = 2_000.0
MEMORY_BYTES = 1_000_000.0
RATIOS_MAX = 256

_TEXTS = msgspec.json.Decoder(list[str])
# One of these in an array that starts like token ids means: a string, an object, true, false, null,
# a fraction, an exponent or a negative number.
_NOT_IDS = (b'"', b"{", b"e", b"E", b"n", b".", b"-")


class _Ratio:
    """Tokens per byte of one kind of prompt, recent prompts first."""

    __slots__ = ("_prompt_bytes", "_tokens")

    def __init__(self) -> None:
        self._prompt_bytes = PRIOR_BYTES
        self._tokens = PRIOR_BYTES * TOKENS_PER_BYTE_DEFAULT

    def tokens_of(self, prompt_bytes: int) -> int:
        """Return how many tokens a prompt of that size is taken to have, at least 1."""
        return max(1, round(prompt_bytes * (self._tokens / self._prompt_bytes)))

    def add(self, prompt_bytes: int, tokens: int) -> None:
        self._prompt_bytes += prompt_bytes
        self._tokens += tokens
        if self._prompt_bytes > MEMORY_BYTES:
            self._prompt_bytes /= 2
            self._tokens /= 2


class PromptRuler:
    """Measures prompts, per model and endpoint; learns from what engines report."""

    def __init__(self) -> None:
        self._ratios: dict[tuple[str, bool], _Ratio] = {}
        self._unknown = _Ratio()

    def measure(self, parsed: ParsedBody) -> tuple[int, int]:
        """Return the prompt's tokens (at least 1), and the bytes they were estimated from.

        The bytes are 0 when the tokens are exact. Cost: a few passes over the raw bytes, none in
        Python. Raises RequestError (400) for a list that is neither texts nor token ids.
        """
        prompt = parsed.prompt
        if not parsed.is_chat and prompt.startswith(b"["):
            ids = _count_ids(prompt)
            if ids:
                return ids, 0
        prompt_bytes = len(prompt) + parsed.tools_bytes
        ratio = self._ratios.get((parsed.model, parsed.is_chat), self._unknown)
        return ratio.tokens_of(prompt_bytes), prompt_bytes

    def learn(self, model: str, is_chat: bool, prompt_bytes: int, prompt_tokens: int) -> None:
        """Take a true prompt length into account; nothing to learn when either is 0.

        Models beyond RATIOS_MAX share one ratio, so a client inventing names costs no memory.
        """
        if not prompt_bytes or not prompt_tokens:
            return
        ratio = self._ratios.get((model, is_chat))
        if ratio is None:
            full = len(self._ratios) >= RATIOS_MAX
            ratio = self._unknown if full else self._ratios.setdefault((model, is_chat), _Ratio())
        ratio.add(prompt_bytes, prompt_tokens)


def _count_ids(prompt: bytes) -> int:
    """Return how many token ids an array (or an array of arrays) holds, 0 if it holds texts.

    n numbers of a flat array stand between n - 1 commas, and nesting adds none. The JSON is valid
    already, so a few byte searches tell what kinds of values there are.
    """
    first = prompt[1:64].lstrip(b" \t\r\n")[:1]
    if first == b'"':
        try:
            _TEXTS.decode(prompt)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise _not_a_prompt() from None
        return 0
    if not (first.isdigit() or first == b"[") or any(sign in prompt for sign in _NOT_IDS):
        raise _not_a_prompt()
    return prompt.count(b",") + 1


def _not_a_prompt() -> RequestError:
    return RequestError(
        "prompt must be a string, a list of strings, or a list of token ids", param="prompt"
    )
