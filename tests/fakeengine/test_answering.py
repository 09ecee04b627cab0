"""Bodies and frames are what an OpenAI client parses."""

import json

import pytest

from spillway.fakeengine.answering import Envelope, error_body, error_frame, usage


def frames(data: bytes) -> list[dict]:
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [json.loads(part[6:]) for part in parts if part != "data: [DONE]"]


def envelope(chat: bool) -> Envelope:
    return Envelope(chat=chat, answer_id='id-"1"', created_s=5, model="m")


def test_completion_stream_holds_each_token_once_in_order():
    shape = envelope(chat=False)
    data = shape.opening() + shape.tokens([" a", " b"]) + shape.ending(" c", "length", None)
    assert data.endswith(b"data: [DONE]\n\n")
    chunks = frames(data)
    assert [chunk["choices"][0]["text"] for chunk in chunks] == [" a", " b", " c"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "length"]
    assert {chunk["id"] for chunk in chunks} == {'id-"1"'}
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}


def test_chat_stream_opens_with_the_role_and_ends_with_usage_if_asked():
    shape = envelope(chat=True)
    counts = usage(10, 2)
    chunks = frames(shape.opening() + shape.tokens([" a"]) + shape.ending(" b", "stop", counts))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": " a"}, {"content": " b"}]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 12
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


@pytest.mark.parametrize("chat", [False, True])
def test_whole_body(chat):
    body = json.loads(envelope(chat).body(" a b", "length", usage(3, 2, 1), {"k": 1}))
    choice = body["choices"][0]
    assert (choice["message"]["content"] if chat else choice["text"]) == " a b"
    assert choice["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert body["kv_transfer_params"] == {"k": 1}


def test_errors_have_vllms_shape():
    error = json.loads(error_body("no", 404, "model"))["error"]
    assert error == {"message": "no", "type": "NotFoundError", "param": "model", "code": 404}
    (framed,) = frames(error_frame("broke"))
    assert framed["error"]["code"] == 500
