"""The few OpenAI fields that are read, the two bodies that are rewritten, and error bodies.

A client's body is parsed once, to the depth of its top-level keys; every value stays the client's
own bytes. Validation beyond the types of the fields read here is the engine's job.
"""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from spillway.core.errors import NodeError, RequestError
from spillway.wire.order import XARGS_KEY

Fields = dict[str, msgspec.Raw]
T = TypeVar("T")

COMPLETIONS_PATH = "/v1/completions"
CHAT_PATH = "/v1/chat/completions"
MODELS_PATH = "/v1/models"
COMPLETION_TOKENS, PROMPT_TOKENS = b'"completion_tokens":', b'"prompt_tokens":'
XARGS = "vllm_xargs"
TRANSFER_PARAMS = ("kv_transfer_params", "ec_transfer_params")
OUTPUT_TOKENS_COMPLETIONS = 16  # what OpenAI and vLLM assume when a completion names no limit


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _PrefillAnswer(msgspec.Struct):
    kv_transfer_params: msgspec.Raw = msgspec.Raw(b"null")
    usage: _Usage | None = None


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[msgspec.Raw]


class _Error(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


_COUNT = re.compile(rb"\s*(\d{1,12})")
_FIELDS = msgspec.json.Decoder(Fields)
_ANSWER = msgspec.json.Decoder(_PrefillAnswer)
_MODEL = msgspec.json.Decoder(_Model)
_MODELS = msgspec.json.Decoder(_ModelList)
_ENCODER = msgspec.json.Encoder()
_TEXT = msgspec.json.Decoder(str)
_LIMIT = msgspec.json.Decoder(int | None)
_FLAG = msgspec.json.Decoder(bool | None)

_XARGS = msgspec.json.Decoder(Fields | None)

_ONE = msgspec.Raw(b"1")
_EMPTY = msgspec.Raw(b"{}")
_FALSE = msgspec.Raw(b"false")
# vLLM's NIXL connector reads six keys from the prefill leg of a disaggregated request.
_PREFILL_KV_PARAMS = msgspec.Raw(
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)


# What few bodies hold, so that one look at the keys passes over what is to be done about it.
_GUARDED = frozenset((*TRANSFER_PARAMS, XARGS))
_SEVERAL = frozenset(("n", "best_of", "use_beam_search"))


class ParsedBody(msgspec.Struct, frozen=True):
    """What the router knows of a request body.

    prompt: the JSON of `prompt`, or of `messages` for a chat.
    tools_bytes: size of a chat's `tools`, which the engine writes into the prompt.
    output_tokens_max: the declared limit; None when there is none.
    fields: every top-level value, in the client's order; views into the body.
    """

    model: str
    prompt: bytes
    tools_bytes: int
    output_tokens_max: int | None
    is_chat: bool
    fields: Fields


def _refuse_transfer_params(fields: Fields) -> None:
    """Keep from engines what only the router may tell them: a wrong one ends the whole engine.

    vLLM moves the keys of `vllm_xargs` beside those of the body, so they are looked at as well.
    """
    xargs: Fields = {}
    if XARGS in fields:
        try:
            xargs = _XARGS.decode(fields[XARGS]) or {}
        except (UnicodeDecodeError, RecursionError):  # an engine may read it another way
            raise RequestError(f"{XARGS} must be an object of scalars", param=XARGS) from None
        except msgspec.MsgspecError:
            pass  # no object: the engine refuses it
    for name in TRANSFER_PARAMS:
        if name in fields or name in xargs:
            raise RequestError(
                f"{name} is set by the router; one from outside can crash an engine", param=name
            )


def parse_body(body: bytes, *, is_chat: bool) -> ParsedBody:
    """Return what is read of a completion or chat body. About 1 µs and 0.3 µs per KB.

    Raises RequestError (400) naming the field, when the body is not a JSON object, a field that
    is read is missing or has the wrong type, or transfer parameters are present.
    """
    try:
        fields = _FIELDS.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(f"the body is not a JSON object: {error}") from None
    except RecursionError:
        raise RequestError("the body is nested too deeply") from None
    if not _GUARDED.isdisjoint(fields):
        _refuse_transfer_params(fields)
    model = _read(fields, "model", _TEXT, "a string")
    if not model:
        raise RequestError("model is missing; it must be a string", param="model")
    if "stream" in fields:
        _read(fields, "stream", _FLAG, "true or false")  # only its type: the engine acts on it
    output_tokens_max = None
    if "max_tokens" in fields:
        output_tokens_max = _read(fields, "max_tokens", _LIMIT, "an integer")
    if is_chat:
        newer = _read(fields, "max_completion_tokens", _LIMIT, "an integer")
        output_tokens_max = output_tokens_max if newer is None else newer
    elif output_tokens_max is None:
        output_tokens_max = OUTPUT_TOKENS_COMPLETIONS
    if output_tokens_max is not None and output_tokens_max < 0:
        raise RequestError("max_tokens must not be negative", param="max_tokens")
    if not _SEVERAL.isdisjoint(fields):
        _one_answer(fields)
    tools = fields.get("tools") if is_chat else None
    tools_bytes = 0 if tools is None else len(memoryview(tools))
    prompt = _prompt(fields, is_chat)
    return ParsedBody(model, prompt, tools_bytes, output_tokens_max, is_chat, fields)


def _one_answer(fields: Fields) -> None:
    """Raise RequestError for a request that an engine splits into several of the same prompt.

    Each of them would fetch the one KV that a prefill node holds; all but the first may read
    blocks that are freed by then, and nothing would say so.
    """
    for name in ("n", "best_of"):
        count = _read(fields, name, _LIMIT, "an integer")
        if count is not None and count > 1:
            raise RequestError(
                f"{name} above 1 is not supported; send the request {count} times", param=name
            )
    if _read(fields, "use_beam_search", _FLAG, "true or false"):
        raise RequestError("use_beam_search is not supported", param="use_beam_search")


def _prompt(fields: Fields, is_chat: bool) -> bytes:
    name = "messages" if is_chat else "prompt"
    raw = fields.get(name)
    if raw is None:
        raise RequestError(f"{name} is missing", param=name)
    prompt = bytes(raw)
    if prompt.startswith(b"[" if is_chat else (b'"', b"[")):
        return prompt
    allowed = "a list of messages" if is_chat else "a string, or a list of strings or token ids"
    raise RequestError(f"{name} must be {allowed}", param=name)


def _read(fields: Fields, name: str, decoder: msgspec.json.Decoder[T], allowed: str) -> T | None:
    raw = fields.get(name)
    if raw is None:
        return None
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RequestError(f"{name} must be {allowed}", param=name) from None


def prefill_body(fields: Fields) -> bytes:
    """Return the body of a request's prefill leg: the client's fields, made to yield one token.

    Source: vLLM's NIXL two-step (disaggregated prefill examples). `min_tokens` is 1 because older
    engines return no KV parameters when the one token happens to end the sequence.
    """
    leg = dict(fields)
    leg.pop("stream_options", None)
    leg["stream"] = _FALSE
    leg["max_tokens"] = _ONE
    leg["min_tokens"] = _ONE
    if "max_completion_tokens" in leg:
        leg["max_completion_tokens"] = _ONE
    leg["kv_transfer_params"] = _PREFILL_KV_PARAMS
    return _ENCODER.encode(leg)


def decode_body(body: bytes, kv_params: bytes) -> bytes:
    """Return the client's own bytes with `kv_transfer_params` spliced in as the last key."""
    # Through a view, so that a long body is copied once and not twice.
    start = memoryview(body.rstrip(b" \t\r\n"))[:-1]
    return b"".join((start, b',"kv_transfer_params":', kv_params, b"}"))


def with_order(body: bytes, fields: Fields, scalar: str) -> bytes:
    """Return a client's body with an order for the plug-in (`wire.order`) in its `vllm_xargs`.

    What else the client put there stays, and an order of the client's own does not. A body whose
    `vllm_xargs` is no object is returned as it is: the engine refuses it.
    """
    given = fields.get(XARGS)
    if given is None:
        order = _ENCODER.encode({XARGS_KEY: scalar})
        return b"".join((body.rstrip(b" \t\r\n")[:-1], b',"vllm_xargs":', order, b"}"))
    return _ENCODER.encode(ordered_fields(fields, scalar))


def ordered_fields(fields: Fields, scalar: str) -> Fields:
    """Return a request's fields with the order in `vllm_xargs`; see `with_order`."""
    given = fields.get(XARGS, _EMPTY)
    try:
        xargs = _XARGS.decode(given) or {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return fields
    xargs[XARGS_KEY] = msgspec.Raw(_ENCODER.encode(scalar))
    return {**fields, XARGS: msgspec.Raw(_ENCODER.encode(xargs))}


def read_prefill_answer(answer: bytes) -> tuple[bytes, int]:
    """Return the KV parameters of a prefill leg, as sent, and the true prompt length (0: unsaid).

    Raises NodeError when the answer holds no `kv_transfer_params` object: its KV cannot be found.
    """
    try:
        decoded = _ANSWER.decode(answer)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError(f"the prefill answer is not a completion: {error}") from None
    kv_params = bytes(decoded.kv_transfer_params)
    if not kv_params.startswith(b"{"):
        raise NodeError("the prefill answer has no kv_transfer_params; is a KV connector set up?")
    return kv_params, decoded.usage.prompt_tokens if decoded.usage else 0


def read_models(answer: bytes) -> dict[str, msgspec.Raw]:
    """Return an engine's model list by id, each entry as sent. Raises NodeError."""
    try:
        return {_MODEL.decode(entry).id: entry for entry in _MODELS.decode(answer).data}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError(f"not a model list: {error}") from None


def models_body(models: Fields) -> bytes:
    """Return a model list with the given entries, ordered by id."""
    entries = [models[name] for name in sorted(models)]
    return _ENCODER.encode({"object": "list", "data": entries})


def error_body(
    status: int, message: str, *, param: str | None = None, code: str | None = None
) -> bytes:
    """Return the OpenAI error object that belongs to an HTTP status."""
    if status == 429:
        kind = "rate_limit_error"
    elif status >= 500:
        kind = "server_error"
    else:
        kind = "invalid_request_error"
    return _ENCODER.encode({"error": _Error(message, kind, param, code)})


def usage_count(tail: bytes, name: bytes) -> int:
    """Return the last integer after `name` (COMPLETION_TOKENS, PROMPT_TOKENS) in a tail, or 0.

    A quoted key cannot occur inside a JSON string without a backslash before its second quote, so
    generated text is never mistaken for it.
    """
    at = tail.rfind(name)
    found = None if at < 0 else _COUNT.match(tail, at + len(name))
    return 0 if found is None else int(found[1])
