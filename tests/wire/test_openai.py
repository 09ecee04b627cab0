"""OpenAI bodies: what is read, what is refused and by which name, and the two rewritten bodies."""

from __future__ import annotations

import json

import pytest

from spillway.core.errors import NodeError, RequestError
from spillway.wire import openai


def parse(body: object, *, is_chat: bool = False) -> openai.ParsedBody:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return openai.parse_body(raw, is_chat=is_chat)


def test_a_completion_is_read() -> None:
    parsed = parse({"model": "m", "prompt": "hello", "max_tokens": 64, "stream": True, "x": [1]})
    assert (parsed.model, bytes(parsed.prompt), parsed.output_tokens_max) == ("m", b'"hello"', 64)
    assert list(parsed.fields) == ["model", "prompt", "max_tokens", "stream", "x"]
    assert not parsed.is_chat


def test_a_chat_is_read_and_its_newer_limit_wins() -> None:
    chat = {"model": "m", "messages": [{"role": "user"}], "max_tokens": 9}
    assert parse(chat, is_chat=True).output_tokens_max == 9
    assert parse({**chat, "max_completion_tokens": 5}, is_chat=True).output_tokens_max == 5
    assert parse({**chat, "max_tokens": None}, is_chat=True).output_tokens_max is None
    assert parse({**chat, "tools": [1, 2]}, is_chat=True).tools_bytes == len("[1, 2]")


def test_a_completion_without_a_limit_has_the_engines_default() -> None:
    assert parse({"model": "m", "prompt": [1, 2]}).output_tokens_max == 16


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "JSON"),
        (b'{"model": "\xff\xfe", "prompt": "x"}', "model"),
        (b'{"model":"m","prompt":"x"} trailing', "JSON"),
        (b'{"model":"m","prompt":' + b"[" * 5000 + b"]" * 5000 + b"}", "deep"),
        ({"prompt": "x"}, "model"),
        ({"model": None, "prompt": "x"}, "model"),
        ({"model": "", "prompt": "x"}, "model"),
        ({"model": 7, "prompt": "x"}, "model"),
        ({"model": "m"}, "prompt"),
        ({"model": "m", "prompt": None}, "prompt"),
        ({"model": "m", "prompt": {"a": 1}}, "prompt"),
        ({"model": "m", "prompt": 5}, "prompt"),
        ({"model": "m", "prompt": "x", "stream": "yes"}, "stream"),
        ({"model": "m", "prompt": "x", "max_tokens": "many"}, "max_tokens"),
        ({"model": "m", "prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"model": "m", "prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"model": "m", "prompt": "x", "kv_transfer_params": None}, "kv_transfer_params"),
        ({"model": "m", "prompt": "x", "n": 2}, "n"),
        ({"model": "m", "prompt": "x", "best_of": 3}, "best_of"),
        ({"model": "m", "prompt": "x", "use_beam_search": True}, "use_beam_search"),
        (b'{"model":"m","prompt":"x","kv\\u005ftransfer_params":{}}', "crash an engine"),
    ],
)
def test_a_bad_completion_is_refused_by_name(body: object, named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        parse(body)
    assert caught.value.status == 400


@pytest.mark.parametrize("messages", ["hi", {"role": "user"}, 5, None])
def test_messages_must_be_a_list(messages: object) -> None:
    with pytest.raises(RequestError, match="messages"):
        parse({"model": "m", "messages": messages}, is_chat=True)


def test_the_prefill_leg_keeps_unknown_fields_and_their_order() -> None:
    body = (
        b'{"custom": {"b":1,  "a":2}, "model":"m","stream":true,"stream_options":{"x":1},'
        b'"prompt":"hi","max_tokens":900,"min_tokens":5, "seed":1.50}'
    )
    leg = openai.prefill_body(parse(body).fields)
    assert b'{"b":1,  "a":2}' in leg
    assert b"1.50" in leg
    decoded = json.loads(leg)
    assert list(decoded)[:4] == ["custom", "model", "stream", "prompt"]
    assert decoded["stream"] is False
    assert (decoded["max_tokens"], decoded["min_tokens"]) == (1, 1)
    assert "stream_options" not in decoded
    assert "max_completion_tokens" not in decoded
    assert decoded["kv_transfer_params"] == {
        "do_remote_decode": True,
        "do_remote_prefill": False,
        "remote_engine_id": None,
        "remote_block_ids": None,
        "remote_host": None,
        "remote_port": None,
    }


def test_the_prefill_leg_limits_both_token_limits_of_a_chat() -> None:
    fields = parse({"model": "m", "messages": [], "max_completion_tokens": 7}, is_chat=True).fields
    decoded = json.loads(openai.prefill_body(fields))
    assert (decoded["max_tokens"], decoded["max_completion_tokens"]) == (1, 1)
    assert bytes(fields["max_completion_tokens"]) == b"7"  # the client's own body is untouched


def test_the_decode_leg_is_the_clients_bytes_and_the_params() -> None:
    body = b'{ "model":"m" ,\n "prompt":"hi" } \n'
    spliced = openai.decode_body(body, b'{"remote_host":"h",  "z":1}')
    assert spliced.startswith(b'{ "model":"m" ,\n "prompt":"hi" ')
    assert json.loads(spliced)["kv_transfer_params"] == {"remote_host": "h", "z": 1}


def test_a_prefill_answer_gives_its_params_as_sent_and_the_prompt_length() -> None:
    answer = b'{"id":"x","kv_transfer_params":{"b": [1 ,2]},"usage":{"prompt_tokens":12,"more":1}}'
    assert openai.read_prefill_answer(answer) == (b'{"b": [1 ,2]}', 12)
    assert openai.read_prefill_answer(b'{"kv_transfer_params":{},"usage":null}') == (b"{}", 0)


@pytest.mark.parametrize(
    "answer",
    [b"{}", b'{"kv_transfer_params":null}', b'{"kv_transfer_params":[1]}', b"<html>", b""],
)
def test_a_prefill_answer_without_params_is_a_node_error(answer: bytes) -> None:
    with pytest.raises(NodeError):
        openai.read_prefill_answer(answer)


def test_models_of_several_engines_make_one_list() -> None:
    one = openai.read_models(b'{"object":"list","data":[{"id":"b","root":"/x"}]}')
    two = openai.read_models(b'{"data":[{"id":"a"},{"id":"b"}]}')
    listed = json.loads(openai.models_body({**two, **one}))
    assert listed == {"object": "list", "data": [{"id": "a"}, {"id": "b", "root": "/x"}]}
    with pytest.raises(NodeError, match="model list"):
        openai.read_models(b'{"data":[{"name":"a"}]}')


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (429, "rate_limit_error"), (503, "server_error")],
)
def test_errors_have_the_openai_shape(status: int, kind: str) -> None:
    body = json.loads(openai.error_body(status, "no", param="p", code="c"))
    assert body == {"error": {"message": "no", "type": kind, "param": "p", "code": "c"}}


def test_usage_is_found_in_the_end_of_an_answer_only_as_a_key() -> None:
    tail = (
        b'"text":"\\"completion_tokens\\":7","usage":{"prompt_tokens":3,"completion_tokens": 41}}'
    )
    assert openai.usage_count(tail, openai.COMPLETION_TOKENS) == 41
    assert openai.usage_count(tail, openai.PROMPT_TOKENS) == 3
    assert openai.usage_count(b'"completion_tokens":null', openai.COMPLETION_TOKENS) == 0
    assert openai.usage_count(b"data: [DONE]", openai.COMPLETION_TOKENS) == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, {"spillway": "r:7:60"}),
        ({}, {"spillway": "r:7:60"}),
        ({"a": [1, 2]}, {"a": [1, 2], "spillway": "r:7:60"}),
        ({"spillway": "forged:999:1", "a": 1}, {"spillway": "r:7:60", "a": 1}),
    ],
)
def test_an_order_joins_what_the_client_has_in_vllm_xargs(given, told) -> None:
    body = {"model": "m", "prompt": "x", "seed": 3}
    sent = json.dumps(body if given is None else {**body, "vllm_xargs": given}).encode() + b"\n"
    fields = openai.parse_body(sent, is_chat=False).fields
    ordered = openai.with_order(sent, fields, "r:7:60")
    assert json.loads(ordered) == {**body, "vllm_xargs": told}
    assert ordered.count(b"vllm_xargs") == 1  # no key twice, which each reader takes differently
    leg = json.loads(openai.prefill_body(openai.ordered_fields(fields, "r:7:60")))
    assert leg["vllm_xargs"] == told
    both = json.loads(openai.decode_body(ordered, b'{"z":1}'))
    assert (both["vllm_xargs"], both["kv_transfer_params"]) == (told, {"z": 1})


def test_an_order_leaves_the_rest_of_the_body_byte_for_byte() -> None:
    sent = b'{"model":"m",  "prompt":"\\u00e9x","x":1.50}'
    fields = openai.parse_body(sent, is_chat=False).fields
    assert (
        openai.with_order(sent, fields, "r:7:") == sent[:-1] + b',"vllm_xargs":{"spillway":"r:7:"}}'
    )


@pytest.mark.parametrize("given", [b'{"\xad":1}', b"[" * 5000 + b"]" * 5000])
def test_vllm_xargs_that_cannot_be_read_are_refused(given: bytes) -> None:
    with pytest.raises(RequestError) as error:
        openai.parse_body(b'{"model":"m","prompt":"x","vllm_xargs":%b}' % given, is_chat=False)
    assert error.value.status == 400


@pytest.mark.parametrize("given", [b"null", b"3", b'"x"', b"[1]"])
def test_vllm_xargs_of_another_type_are_the_engines_to_refuse(given: bytes) -> None:
    sent = b'{"model":"m","prompt":"x","vllm_xargs":%b}' % given
    fields = openai.parse_body(sent, is_chat=False).fields
    xargs = json.loads(openai.with_order(sent, fields, "r:7:"))["vllm_xargs"]
    assert xargs == (json.loads(given) if given != b"null" else {"spillway": "r:7:"})


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params"])
@pytest.mark.parametrize("start", ["", '"vllm_xargs":{'])
def test_transfer_params_are_refused_wherever_vllm_would_read_them(name: str, start: str) -> None:
    end = "}" if start else ""
    text = f'{{"model":"m","prompt":"x",{start}"{name}":1{end}}}'
    for spelling in (text, text.replace("_transfer", "\\u005ftransfer")):
        with pytest.raises(RequestError, match=name):
            openai.parse_body(spelling.encode(), is_chat=False)


@pytest.mark.parametrize("xargs", ['{"a":1}', "7", "null"])
def test_other_extra_arguments_go_through(xargs: str) -> None:
    body = f'{{"model":"m","prompt":"x","vllm_xargs":{xargs}}}'.encode()
    assert openai.parse_body(body, is_chat=False).model == "m"
