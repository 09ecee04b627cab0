"""What is asked of the cluster, and what must come of it: every token, in its place, and an end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from spillway.wire.faketext import expected_token, prompt_digest

MODEL = "fake-llama"


@dataclass(frozen=True)
class Wish:
    """One request. kind: ids, text or chat."""

    kind: str = "ids"
    prompt_tokens: int = 20
    output_tokens: int = 8
    stream: bool = True
    seed: int = 0
    usage: bool = False

    @cached_property
    def prompt(self) -> list[int] | str:
        if self.kind == "ids":
            return [1000 + (self.seed * 7919 + at) % 30_000 for at in range(self.prompt_tokens)]
        words = f"w{self.seed:03d} " * self.prompt_tokens  # five bytes each
        return words[: 4 * self.prompt_tokens - 2] + "é"  # two bytes; four make a token

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.kind == "chat" else "/v1/completions"

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"model": MODEL, "max_tokens": self.output_tokens}
        if self.kind == "chat":
            assert isinstance(self.prompt, str)
            half = len(self.prompt) // 2
            told, asked = self.prompt[:half], self.prompt[half:]
            body["messages"] = [
                {"role": "system", "content": told},
                {"role": "user", "content": [{"type": "text", "text": asked}]},
            ]
        else:
            body["prompt"] = self.prompt
        if self.stream:
            body["stream"] = True
            if self.usage:
                body["stream_options"] = {"include_usage": True}
        return body

    @cached_property
    def expected(self) -> list[str]:
        prompt = self.prompt
        if self.kind == "chat":
            half = len(prompt) // 2
            prompt = f"{prompt[:half]}\n{prompt[half:]}"
        digest = prompt_digest(prompt)
        return [expected_token(digest, index) for index in range(self.output_tokens)]


@dataclass
class Reply:
    """What came back. texts: one per event that carried text; error: the error object, if any.

    broken: the connection ended before the answer did, as the client library says it.
    """

    wish: Wish
    request_id: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes = b""
    texts: list[str] = field(default_factory=list)
    error: dict[str, Any] | None = None
    done: bool = False
    broken: str = ""
    usage: dict[str, Any] | None = None

    @property
    def route(self) -> str:
        return self.headers.get("x-spillway-route", "")

    @property
    def reason(self) -> str:
        return self.headers.get("x-spillway-reason", "")

    @property
    def outcome(self) -> str:
        if self.broken:
            return "broken"
        if self.error is not None:
            return "failed" if self.status == 200 else f"http_{self.status}"
        return "finished" if self.done else "silent"

    def check(self) -> None:
        """Assert that every token is the right one, in its place, and that the end is told."""
        whole = self.wish.expected
        text = "".join(self.texts)
        if self.outcome == "finished":
            assert text == "".join(whole), f"{self.request_id}: wrong text"
        else:
            assert self.outcome in ("failed", "http_502", "http_503"), (self.outcome, self.raw)
            assert "".join(whole).startswith(text), f"{self.request_id}: wrong text before the end"
            assert text == "".join(whole[: len(self.texts)]), "a token came in pieces"
            assert self.error is not None
            assert self.error["type"] == "server_error"
            assert self.error["message"]
        assert b"remote_" not in self.raw, "kv_transfer_params reached the client"
        assert b"do_remote" not in self.raw
        if self.wish.stream:
            assert b"kv_transfer_params" not in self.raw


def parse_events(reply: Reply) -> None:
    """Read a whole event stream; anything that has no place in it fails."""
    events = reply.raw.decode().split("\n\n")
    assert events.pop() == "", f"the stream ends within an event: {reply.raw[-200:]!r}"
    for event in events:
        # An engine may die between [DONE] and the end of its answer; nothing else may follow it.
        assert not reply.done or '"error"' in event, f"an event after [DONE]: {event!r}"
        assert reply.error is None, f"an event after the error frame: {event!r}"
        assert event.startswith("data: "), event
        data = event.removeprefix("data: ")
        if data == "[DONE]":
            reply.done = True
            continue
        content = json.loads(data)
        if "error" in content:
            reply.error = content["error"]
            continue
        reply.usage = content.get("usage") or reply.usage
        for choice in content["choices"]:
            text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            if text:
                reply.texts.append(text)


def parse_whole(reply: Reply) -> None:
    """Read a JSON answer."""
    content = json.loads(reply.raw)
    reply.error = content.get("error")
    if reply.error is None:
        assert content.get("kv_transfer_params") is None
        (choice,) = content["choices"]
        reply.texts = [choice["message"]["content"] if "message" in choice else choice["text"]]
        reply.usage = content["usage"]
        reply.done = True
