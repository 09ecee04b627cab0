"""What the engine answers: OpenAI bodies, stream frames and error bodies, as bytes.

The parts of a stream frame that never change are encoded once per request; a token costs one
concatenation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

DONE_FRAME = b"data: [DONE]\n\n"
_ERROR_TYPES = {400: "BadRequestError", 404: "NotFoundError", 413: "BadRequestError"}
_MARK = "\x00"


def encode_json(value: object) -> bytes:
    """Return `value` as compact JSON."""
    return msgspec.json.encode(value)


def error_body(message: str, status: int, param: str | None = None) -> bytes:
    """Return vLLM's error object."""
    kind = _ERROR_TYPES.get(status, "InternalServerError")
    error = {"message": message, "type": kind, "param": param, "code": status}
    return encode_json({"error": error})


def error_frame(message: str, status: int = 500) -> bytes:
    """Return the frame that tells of a failure after the status line has gone out."""
    return b"data: " + error_body(message, status) + b"\n\n"


def usage(prompt_tokens: int, output_tokens: int, cached_tokens: int = 0) -> dict[str, Any]:
    """Return the `usage` object. `cached_tokens`: of the prompt, not computed for this request."""
    details = {"cached_tokens": cached_tokens} if cached_tokens else None
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + output_tokens,
        "completion_tokens": output_tokens,
        "prompt_tokens_details": details,
    }


class Envelope:
    """The shape of one request's answer: completion or chat, under one id."""

    def __init__(self, *, chat: bool, answer_id: str, created_s: int, model: str) -> None:
        self._chat = chat
        kind = "chat.completion" if chat else "text_completion"
        self._head: dict[str, Any] = {"id": answer_id, "object": kind, "created": created_s}
        self._head["model"] = model
        self._chunk_head = {**self._head, "object": "chat.completion.chunk" if chat else kind}
        # A control character cannot occur in the fake text, so it marks where a token goes.
        frame = self._frame([self._chunk_choice(_MARK)])
        self._before_token, _, self._after_token = frame.rpartition(b"\\u0000")

    def body(
        self,
        text: str,
        finish_reason: str,
        usage: dict[str, Any],
        kv_transfer_params: dict[str, Any] | None,
    ) -> bytes:
        """Return the whole answer of a request that did not ask for a stream."""
        choice: dict[str, Any] = {"index": 0}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        choice |= {"logprobs": None, "finish_reason": finish_reason, "stop_reason": None}
        answer = {**self._head, "choices": [choice], "usage": usage}
        answer["kv_transfer_params"] = kv_transfer_params
        return encode_json(answer)

    def opening(self) -> bytes:
        """Return what precedes the first token's frame: a chat stream names the role first."""
        if not self._chat:
            return b""
        delta = {"role": "assistant", "content": ""}
        return self._frame([{**self._chunk_choice(""), "delta": delta}])

    def tokens(self, texts: Iterable[str]) -> bytes:
        """Return one frame per token. The texts need no escaping in JSON."""
        before, after = self._before_token, self._after_token
        return b"".join([before + text.encode() + after for text in texts])

    def ending(self, last_text: str, finish_reason: str, usage: dict[str, Any] | None) -> bytes:
        """Return the last token's frame with its finish_reason, usage if asked for, and [DONE]."""
        choice = {**self._chunk_choice(last_text), "finish_reason": finish_reason}
        frames = self._frame([choice])
        if usage is not None:
            frames += self._frame([], usage)
        return frames + DONE_FRAME

    def _chunk_choice(self, text: str) -> dict[str, Any]:
        content = {"delta": {"content": text}} if self._chat else {"text": text}
        return {"index": 0, **content, "logprobs": None, "finish_reason": None}

    def _frame(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {**self._chunk_head, "choices": choices}
        if usage is not None:
            chunk["usage"] = usage
        return b"data: " + encode_json(chunk) + b"\n\n"
