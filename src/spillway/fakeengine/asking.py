"""What a client asked: the OpenAI body and our headers, checked and reduced to what a node needs.

Everything a client can get wrong is found here, before the node hears of it, and raised as
`RequestError` with the status that vLLM gives. Fields this engine has no use for are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, isfinite
from typing import Annotated, Any

import msgspec

from spillway.core.errors import RequestError
from spillway.wire.faketext import prompt_digest
from spillway.wire.report import CHUNKS_HEADER, DISPATCH_HEADER, TBT_HEADER

CHUNK_STEPS_MAX = 100_000  # bound on a literal schedule, so that a header cannot fill the memory
TEXT_TOKEN_BYTES = 4
REQUEST_ID_HEADER = "x-request-id"

_Tokens = Annotated[int, msgspec.Meta(ge=1)]
_TokenId = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Body(msgspec.Struct):
    """The fields that matter of either endpoint's body."""

    model: str | None = None
    prompt: str | list[_TokenId | str | list[_TokenId]] | None = None
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    min_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1)] | None = None
    kv_transfer_params: dict[str, Any] | None = None


_BODY = msgspec.json.Decoder(_Body)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskLimits:
    """What one engine accepts.

    context_tokens_max: prompt plus output.
    natural_output_tokens: where the fake model stops by itself when the client sets no limit.
    """

    model: str
    context_tokens_max: int
    natural_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, checked.

    prompt_digest: what the answer's text depends on (`wire.faketext`).
    output_tokens: how many tokens the fake model will write; finish_reason follows from it.
    """

    chat: bool
    prompt_tokens: int
    prompt_digest: int
    output_tokens: int
    finish_reason: str
    stream: bool
    include_usage: bool
    kv_transfer_params: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the headers say.

    request_id: X-Request-Id, which the client or the router chose; None if it chose none.
    dispatch: (router id, dispatch id), or None from a client that is no Spillway router.
    chunks: ((chunk_tokens, steps), ...) to follow literally; () leaves it to the node.
    """

    request_id: str | None
    dispatch: tuple[str, int] | None
    slo_tbt_s: float
    chunks: tuple[tuple[int, int], ...]


def read_ask(raw: bytes, *, chat: bool, limits: AskLimits) -> Ask:
    """Return the checked request of one body.

    Raises RequestError: 404 for an unknown model, 400 for everything else that is wrong.
    """
    try:
        body = _BODY.decode(raw)
    except msgspec.MsgspecError as error:
        raise RequestError(f"the body is not a valid request: {error}") from error
    except UnicodeDecodeError as error:
        raise RequestError("the body is not UTF-8") from error
    except RecursionError as error:
        raise RequestError("the body is nested too deeply") from error
    if body.model is not None and body.model != limits.model:
        raise RequestError(
            f"The model `{body.model}` does not exist. This engine serves `{limits.model}`.",
            status=404,
            param="model",
        )
    if (body.n or 1) != 1:
        raise RequestError("n must be 1: this engine writes one choice", param="n")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream: true", param="stream_options")
    prompt = _chat_prompt(body) if chat else _prompt(body)
    prompt_tokens = text_tokens(prompt) if isinstance(prompt, str) else len(prompt)
    output_tokens, finish_reason = _output(body, prompt_tokens, limits)
    options = body.stream_options
    return Ask(
        chat=chat,
        prompt_tokens=prompt_tokens,
        prompt_digest=prompt_digest(prompt),
        output_tokens=output_tokens,
        finish_reason=finish_reason,
        stream=bool(body.stream),
        include_usage=bool(options and options.include_usage),
        kv_transfer_params=body.kv_transfer_params,
    )


def _prompt(body: _Body) -> str | list[int]:
    """Return `prompt`: a text, token ids, or the one member of a batch of either."""
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1:
        only = prompt[0]
        prompt = only if isinstance(only, str) else [only] if isinstance(only, int) else [*only]
    if not prompt:
        raise RequestError(
            "prompt must be a text or a list of token ids, not empty", param="prompt"
        )
    if isinstance(prompt, str):
        return prompt
    ids = [item for item in prompt if isinstance(item, int)]
    if len(ids) < len(prompt):
        raise RequestError("prompt must be one prompt, not a batch", param="prompt")
    return ids


def _chat_prompt(body: _Body) -> str:
    """Return the messages' texts, one per line: the whole chat template of the fake model."""
    if not body.messages:
        raise RequestError("messages must be a list of at least one message", param="messages")
    texts = []
    for message in body.messages:
        content = message.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        texts.append(content or "")
    prompt = "\n".join(texts)
    if not prompt:
        raise RequestError("messages must hold some text", param="messages")
    return prompt


def text_tokens(text: str) -> int:
    """Return how many tokens the fake tokenizer makes of a text: one per four UTF-8 bytes."""
    return ceil(len(text.encode()) / TEXT_TOKEN_BYTES)


def _output(body: _Body, prompt_tokens: int, limits: AskLimits) -> tuple[int, str]:
    """Return (output tokens, finish_reason).

    The fake model never samples an end-of-text token before the client's limit; without a limit it
    stops by itself after `natural_output_tokens`, or at the end of the context under ignore_eos.
    """
    room_tokens = limits.context_tokens_max - prompt_tokens
    limit_tokens = body.max_completion_tokens or body.max_tokens
    if room_tokens < (limit_tokens or 1):
        raise RequestError(
            f"This model's maximum context length is {limits.context_tokens_max} tokens. However, "
            f"you requested {limit_tokens or 1} output tokens and your prompt contains "
            f"{prompt_tokens} tokens. Please reduce the length of either one.",
            param="max_tokens" if limit_tokens else "prompt",
        )
    min_tokens = body.min_tokens or 0
    if min_tokens > (limit_tokens or room_tokens):
        raise RequestError(
            f"min_tokens must not exceed max_tokens: {min_tokens} > {limit_tokens or room_tokens}",
            param="min_tokens",
        )
    if limit_tokens:
        return limit_tokens, "length"
    if body.ignore_eos:
        return room_tokens, "length"
    natural_tokens = max(min_tokens, limits.natural_output_tokens)
    return (natural_tokens, "stop") if natural_tokens < room_tokens else (room_tokens, "length")


def read_orders(headers: Mapping[str, str], *, slo_tbt_s: float) -> Orders:
    """Return what the headers order; `slo_tbt_s` holds where there is no target header.

    Raises RequestError for a header that cannot be read: a router that sends one is broken, and
    an engine that guessed would hide it.
    """
    return Orders(
        request_id=_request_id(headers.get(REQUEST_ID_HEADER)),
        dispatch=_dispatch(headers.get(DISPATCH_HEADER)),
        slo_tbt_s=_target_s(headers.get(TBT_HEADER), slo_tbt_s),
        chunks=_chunks(headers.get(CHUNKS_HEADER)),
    )


def _request_id(text: str | None) -> str | None:
    # Bytes that are no UTF-8 arrive as lone surrogates, which no answer could carry.
    if text is not None and not text.isprintable():
        raise RequestError(f"{REQUEST_ID_HEADER}: {text!r} is not printable text")
    return text or None


def _dispatch(text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    router_id, _, number = text.rpartition(":")
    if not router_id or not _is_count(number):
        raise RequestError(f"{DISPATCH_HEADER}: {text!r} is not <router id>:<dispatch id>")
    return router_id, int(number)


def _target_s(text: str | None, default_s: float) -> float:
    if text is None:
        return default_s
    try:
        target_s = float(text) / 1e3
    except ValueError:
        target_s = 0.0
    if not (isfinite(target_s) and target_s > 0):
        raise RequestError(f"{TBT_HEADER}: {text!r} is not a positive number of milliseconds")
    return target_s


def _chunks(text: str | None) -> tuple[tuple[int, int], ...]:
    """Return the schedule of `512*3,128*2`: three steps of 512 tokens, then two of 128."""
    if not text:
        return ()
    chunks = []
    for part in text.split(","):
        tokens, _, steps = part.strip().partition("*")
        if not (_is_count(tokens) and _is_count(steps) and int(tokens) and int(steps)):
            raise RequestError(f"{CHUNKS_HEADER}: {part!r} is not <tokens>*<steps>")
        chunks.append((int(tokens), int(steps)))
    if sum(steps for _, steps in chunks) > CHUNK_STEPS_MAX:
        raise RequestError(f"{CHUNKS_HEADER}: more than {CHUNK_STEPS_MAX} steps")
    return tuple(chunks)


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


class _Params(msgspec.Struct):
    kv_transfer_params: dict[str, Any] | None = None


def salvage_params(raw: bytes) -> dict[str, Any] | None:
    """Return the `kv_transfer_params` of a body that is refused for something else, if any."""
    try:
        return msgspec.json.decode(raw, type=_Params).kv_transfer_params
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
