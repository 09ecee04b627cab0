"""What a client can get wrong, and what a good request comes to."""

import json

import pytest

from spillway.core.errors import RequestError
from spillway.fakeengine.asking import AskLimits, Orders, read_ask, read_orders
from spillway.wire.faketext import prompt_digest

LIMITS = AskLimits(model="fake", context_tokens_max=1000, natural_output_tokens=50)


def ask(chat=False, **body):
    fields = {"messages": [{"role": "user", "content": "hello"}]} if chat else {"prompt": "hello"}
    return read_ask(json.dumps(fields | body).encode(), chat=chat, limits=LIMITS)


def test_a_text_prompt_has_one_token_per_four_bytes():
    assert ask(prompt="abcdefghi").prompt_tokens == 3
    assert ask(prompt="äö").prompt_tokens == 1
    assert ask(prompt="abc").prompt_digest == prompt_digest("abc")


def test_a_token_id_prompt_is_exact_and_a_batch_of_one_is_the_same_prompt():
    plain, batch = ask(prompt=[1, 2, 3]), ask(prompt=[[1, 2, 3]])
    assert plain == batch
    assert plain.prompt_tokens == 3
    assert plain.prompt_digest == prompt_digest([1, 2, 3])
    assert ask(prompt=["abc"]) == ask(prompt="abc")
    assert ask(prompt=[7]).prompt_tokens == 1


def test_chat_joins_the_texts_of_its_messages():
    parts = [{"type": "text", "text": "wor"}, {"type": "text", "text": "ld"}]
    messages = [{"role": "system", "content": "hello"}, {"role": "user", "content": parts}]
    assert ask(chat=True, messages=messages).prompt_digest == prompt_digest("hello\nworld")


@pytest.mark.parametrize(
    ("body", "output_tokens", "finish_reason"),
    [
        ({"max_tokens": 7}, 7, "length"),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9, "length"),
        ({"max_tokens": 7, "min_tokens": 7}, 7, "length"),
        ({}, 50, "stop"),
        ({"min_tokens": 60}, 60, "stop"),
        ({"ignore_eos": True}, 998, "length"),
        ({"prompt": [1] * 970}, 30, "length"),
    ],
)
def test_output_length(body, output_tokens, finish_reason):
    got = ask(**body)
    assert (got.output_tokens, got.finish_reason) == (output_tokens, finish_reason)


def test_null_stands_for_a_missing_field():
    assert ask(max_tokens=None, stream=None, n=None, min_tokens=None) == ask()


@pytest.mark.parametrize(
    ("body", "status", "names"),
    [
        ({"model": "other"}, 404, "other"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": None}, 400, "prompt"),
        ({"prompt": {"a": 1}}, 400, "prompt"),
        ({"prompt": ["a", "b"]}, 400, "batch"),
        ({"prompt": [1, "b"]}, 400, "batch"),
        ({"prompt": [-1]}, 400, "prompt"),
        ({"prompt": [1 << 32]}, 400, "prompt"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": "7"}, 400, "max_tokens"),
        ({"max_tokens": 1000}, 400, "context length"),
        ({"max_tokens": 3, "min_tokens": 4}, 400, "min_tokens"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": {"include_usage": True}}, 400, "stream"),
        ({"n": 2}, 400, "n must be 1"),
        ({"kv_transfer_params": []}, 400, "kv_transfer_params"),
    ],
)
def test_a_wrong_field_is_named(body, status, names):
    with pytest.raises(RequestError, match=names) as caught:
        ask(**body)
    assert caught.value.status == status


@pytest.mark.parametrize("messages", [None, [], "hi", [{"content": "x"}], [{"role": "user"}]])
def test_wrong_messages_are_refused(messages):
    with pytest.raises(RequestError) as caught:
        ask(chat=True, messages=messages)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"prompt":"\xff"}', b"\xff", b"null", b'{"a":' + b"[" * 9999]
)
def test_a_body_that_is_no_json_object_is_refused(raw):
    with pytest.raises(RequestError) as caught:
        read_ask(raw, chat=False, limits=LIMITS)
    assert caught.value.status == 400


def test_headers_become_orders():
    headers = {
        "x-request-id": "mine",
        "x-spillway-dispatch": "router:one:12",
        "x-slo-tbt-ms": "45.5",
        "x-spillway-chunks": "512*3, 128*2",
    }
    assert read_orders(headers, slo_tbt_s=0.06) == Orders(
        request_id="mine",
        dispatch=("router:one", 12),
        slo_tbt_s=0.0455,
        chunks=((512, 3), (128, 2)),
    )
    assert read_orders({}, slo_tbt_s=0.06) == Orders(
        request_id=None, dispatch=None, slo_tbt_s=0.06, chunks=()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", "a\udcffb"),
        ("x-spillway-dispatch", "12"),
        ("x-spillway-dispatch", ":12"),
        ("x-spillway-dispatch", "r:-1"),
        ("x-slo-tbt-ms", "fast"),
        ("x-slo-tbt-ms", "0"),
        ("x-slo-tbt-ms", "nan"),
        ("x-spillway-chunks", "512"),
        ("x-spillway-chunks", "512*0"),
        ("x-spillway-chunks", "512*3,"),
        ("x-spillway-chunks", "1*999999999"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(name, value):
    with pytest.raises(RequestError, match=name):
        read_orders({name: value}, slo_tbt_s=0.06)
