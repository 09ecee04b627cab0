"""Drives a real vLLM cluster: routers in front of it, and a client that reads all of an answer.

Nothing here depends on how fast the machine is: what must come true is waited for, within generous
bounds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import aiohttp
from aiohttp import web

from spillway.core.dispatcher import DispatchLimits
from spillway.core.policies import build_policy
from spillway.core.types import Slo
from spillway.router.app import Server, serve
from spillway.router.settings import Classes, RouterSettings
from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import MODEL_NAME
from spillway.vllmcluster.routing import router_config
from spillway.wire.report import REPORTS_PATH, NodeReport, StepTaken, decode

PATIENCE_S = 150.0  # for what must come true; a test that waits in vain fails
LOOSE = Slo(3600.0, 60.0)  # missed by no machine, so that where a prompt goes never depends on it
PREFILL_ALL = ("least-loaded", {})
DEFLECT_ALL = ("threshold", {"prompt_tokens_max": 100_000})


@asynccontextmanager
async def router_for(
    cluster: VllmCluster,
    policy: tuple[str, dict[str, Any]],
    urls: Mapping[str, str] = MappingProxyType({}),
    **settings: Any,
) -> AsyncIterator[Server]:
    """Run a router in front of a cluster, and wait until it can use every node.

    urls: by node name, of proxies that stand before a node.
    """
    name, options = policy
    given = {"health_interval_s": 0.2, "sweep_s": 0.1, "drain_s": 0.5, "port": 0, **settings}
    router = await serve(
        router_config(cluster, name, urls=urls).build_nodes(),
        build_policy(name, options),
        classes=Classes({"default": LOOSE}),
        # How far this machine is from the built-in law must not decide what is tested.
        limits=DispatchLimits(report_age_max_s=PATIENCE_S, calibrated=False),
        settings=RouterSettings(**given),
    )
    try:
        await until(lambda: all(node.is_up for node in router.health.nodes.values()))
        wanted = {name for name, node in cluster.nodes.items() if node.report_url}
        await until(lambda: router.shell.takes_orders == wanted)
        yield router
    finally:
        await router.close()


async def until(true: Callable[[], bool | Awaitable[bool]], patience_s: float = PATIENCE_S) -> None:
    """Return once the condition holds; fail when it does not come to hold."""
    loop = asyncio.get_running_loop()
    due_s = loop.time() + patience_s
    while True:
        held = true()
        if held if isinstance(held, bool) else await held:
            return
        assert loop.time() < due_s, "what the test waits for did not come true"
        await asyncio.sleep(0.05)


def url_of(router: Server) -> str:
    return f"http://127.0.0.1:{router.port}"


# --- what is asked and what comes back -----------------------------------------------------------


def token_ids(tokens: int, seed: int) -> list[int]:
    """Return a prompt of so many token ids, each of them visible text."""
    return [300 + (seed * 7919 + at * (2 * seed + 1) * 31) % 3700 for at in range(tokens)]


def words(tokens: int, seed: int) -> str:
    """Return text of about so many tokens; one word of two letters is one."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    picks = [(seed * 31 + at * (2 * seed + 3)) % 676 for at in range(tokens)]
    return "".join(f" {letters[pick // 26]}{letters[pick % 26]}" for pick in picks)


def completion(prompt: list[int] | str, output_tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL_NAME,
        "prompt": prompt,
        "max_tokens": output_tokens,
        "temperature": 0,
        **more,
    }


def chat(prompt: str, output_tokens: int = 8, **more: Any) -> dict[str, Any]:
    return {
        "model": MODEL_NAME,
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": prompt},
        ],
        "max_tokens": output_tokens,
        "temperature": 0,
        **more,
    }


@dataclass
class Answer:
    """What came back. error: the error object, of a status or in the stream; broken: no end."""

    status: int
    headers: dict[str, str]
    text: str = ""
    logprobs: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    done: bool = False
    broken: str = ""
    events: int = 0

    @property
    def route(self) -> str:
        return self.headers.get("x-spillway-route", "")

    def take(self, part: dict[str, Any]) -> None:
        """Add a whole answer, or one event of a stream."""
        if "error" in part:
            self.error = part["error"]
        self.usage = part.get("usage") or self.usage
        for choice in part.get("choices", ()):
            said = choice.get("message") or choice.get("delta") or choice
            text = said.get("content" if said is not choice else "text")
            self.text += text or ""
            found = choice.get("logprobs") or {}
            if "content" in found:
                self.logprobs += [one["logprob"] for one in found["content"]]
            else:
                self.logprobs += found.get("token_logprobs", [])


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    *,
    headers: dict[str, str] | None = None,
    on_event: Callable[[Answer], None] = lambda answer: None,
) -> Answer:
    """Send one request and read the answer to its end, streamed or not."""
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    async with session.post(url + path, json=body, headers=headers) as response:
        answer = Answer(response.status, {k.lower(): v for k, v in response.headers.items()})
        try:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                answer.take(json.loads(await response.read()))
                answer.done = True
                return answer
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    answer.done = True
                elif line.startswith(b"data: "):
                    answer.take(json.loads(line[6:]))
                    answer.events += 1
                    on_event(answer)
        except aiohttp.ClientError as error:
            answer.broken = repr(error)
        return answer


# --- what a node says of itself ------------------------------------------------------------------


@dataclass
class Heard:
    """The reports of one node since listening began, and the steps in them by number."""

    reports: list[NodeReport] = field(default_factory=list)
    steps: dict[int, StepTaken] = field(default_factory=dict)

    @property
    def last(self) -> NodeReport:
        return self.reports[-1]

    def since(self, step: int) -> list[StepTaken]:
        """Return the steps after number `step`, in order; fail when one is missing."""
        found = [self.steps[number] for number in sorted(self.steps) if number > step]
        assert [one.step for one in found] == list(range(step + 1, step + 1 + len(found)))
        return found


@asynccontextmanager
async def listening(
    session: aiohttp.ClientSession, cluster: VllmCluster, name: str
) -> AsyncIterator[Heard]:
    """Listen to a node's reports as a router would."""
    heard = Heard()
    url = f"{cluster.nodes[name].report_url}{REPORTS_PATH}?router=test"

    async def read() -> None:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=None)) as response:
            assert response.status == 200
            async for line in response.content:
                report = decode(line)
                heard.reports.append(report)
                heard.steps |= {step.step: step for step in report.recent_steps}

    reader = asyncio.create_task(read())
    try:
        await until(lambda: bool(heard.reports) or reader.done())
        yield heard
    finally:
        reader.cancel()
        await asyncio.wait([reader])


async def all_kv_free(session: aiohttp.ClientSession, cluster: VllmCluster) -> None:
    """Wait until no node holds any KV, nor any request."""
    for name in cluster.nodes:
        async with listening(session, cluster, name) as heard:
            await until(
                lambda heard=heard: (  # type: ignore[misc]
                    heard.last.kv_used_tokens == 0
                    and heard.last.backlog_prompts == 0
                    and heard.last.pulling_seqs == 0
                )
            )


# --- a node that lies ----------------------------------------------------------------------------


class Between:
    """A proxy in front of one node, which can spoil what passes. Not for streams.

    spoil: changes the answer to an inference request.  cut: closes the connection instead of
    passing on that answer.  asked: the bodies of the inference requests that came, parsed.
    """

    def __init__(self, session: aiohttp.ClientSession, node_url: str) -> None:
        self.spoil: Callable[[dict[str, Any]], None] = lambda answer: None
        self.cut = False
        self.asked: list[dict[str, Any]] = []
        self.url = ""
        self._session = session
        self._node_url = node_url

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Between]:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", self._pass)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if body:
            self.asked.append(json.loads(body))
        headers = {"content-type": "application/json"}
        url = self._node_url + request.path_qs
        async with self._session.request(request.method, url, data=body, headers=headers) as got:
            content = await got.read()
            if body and self.cut:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if body and got.status == 200:
                answer = json.loads(content)
                self.spoil(answer)
                content = json.dumps(answer).encode()
            return web.Response(status=got.status, body=content, content_type=got.content_type)
