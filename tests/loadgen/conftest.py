"""A small OpenAI endpoint on a loopback port, behaving as each test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from spillway.wire.faketext import expected_token, prompt_digest

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


class Stream:
    """An answer in the making: server-sent events, as a completion endpoint writes them."""

    def __init__(self, request: web.Request, body: dict[str, Any]) -> None:
        self.request = request
        self.body = body
        self.digest = prompt_digest(body["prompt"])
        self.response = web.StreamResponse(
            headers={
                "content-type": "text/event-stream",
                "x-spillway-route": "deflected",
                "x-spillway-reason": "faster_on_decode",
            }
        )

    @classmethod
    async def open(cls, request: web.Request) -> Stream:
        stream = cls(request, await request.json())
        await stream.response.prepare(request)
        return stream

    async def raw(self, text: str) -> None:
        await self.response.write(text.encode())

    async def event(self, payload: dict[str, Any]) -> None:
        await self.raw(f"data: {json.dumps(payload)}\n\n")

    def token_text(self, index: int) -> str:
        """The event of one token."""
        text = expected_token(self.digest, index)
        return f"data: {json.dumps({'choices': [{'index': 0, 'text': text}]})}\n\n"

    async def tokens(self, *indices: int) -> None:
        for index in indices:
            await self.raw(self.token_text(index))

    async def end(self) -> web.StreamResponse:
        usage = {"prompt_tokens": 1, "completion_tokens": self.body["max_tokens"]}
        await self.event({"choices": [], "usage": usage})
        await self.raw("data: [DONE]\n\n")
        return self.response


async def answer(request: web.Request) -> web.StreamResponse:
    """What a simulated engine does, at once."""
    stream = await Stream.open(request)
    await stream.tokens(*range(stream.body["max_tokens"]))
    return await stream.end()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server around a handler of POST /v1/completions and returns its base URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> str:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/completions", handler)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
def stream() -> type[Stream]:
    return Stream


@pytest.fixture
def answers() -> Handler:
    return answer
