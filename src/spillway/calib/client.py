"""Talks to the one engine under test: streams whose tokens are timed, reports, and its limits.

The only file here that knows the HTTP client; what goes wrong on the network ends as `NodeError`.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import Any, NamedTuple, Self

import aiohttp
import msgspec

from spillway.clock import Clock
from spillway.core.errors import ConfigError, NodeError
from spillway.wire.enginepages import read_metrics
from spillway.wire.order import XARGS_KEY, EngineOrder, encode_order
from spillway.wire.report import REPORTS_PATH, TBT_HEADER, NodeReport, decode

CONNECT_S = 10.0
SILENCE_S = 120.0  # an engine that compiles a kernel may be silent for long
ERROR_BYTES_MAX = 4096
TBT_TARGET_S = 3600.0  # so loose that no plug-in makes a chunk smaller for it
REPORT_READER = "calibration"  # how we name ourselves where a router would
VOCABULARIES = (16_384, 4096, 1024, 256)  # sizes to try, largest first; no prompt needs more
SPECIAL_IDS_FRAC = 0.0625  # at the start of a vocabulary, where special tokens and bytes are


class NoReports(NodeError):
    """The engine has no report stream: it runs without the plug-in."""


class TokenStream:
    """One streamed completion and when each of its tokens came.

    ended: it gives no more tokens, by itself or because it was closed.
    """

    __slots__ = ("_tail", "ended", "error", "output_tokens", "prompt_tokens", "sent_s", "times_s")

    def __init__(self, prompt_tokens: int, output_tokens: int, sent_s: float) -> None:
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.sent_s = sent_s
        self.times_s = array("d")
        self.ended = False
        self.error = ""
        self._tail = b""

    def take(self, received: bytes, now_s: float) -> None:
        """Count the events in what was received: one per token, up to the length asked for."""
        if b'"error"' in received:
            self.error = received.decode(errors="replace").strip()[:ERROR_BYTES_MAX]
        # An event ends with an empty line, which may itself be cut in two.
        text = self._tail + received
        self._tail = b"\n" if text.endswith(b"\n") and not text.endswith(b"\n\n") else b""
        tokens = min(text.count(b"\n\n"), self.output_tokens - len(self.times_s))
        self.times_s.extend([now_s] * tokens)


class EngineFacts(NamedTuple):
    """What an engine says of itself when asked; None where it does not."""

    model: str
    version: str
    context_tokens_max: int | None
    kv_capacity_tokens: int | None
    chunk_tokens_max: int | None
    reports: bool


class EngineClient:
    """Requests to one engine. Use as a context manager: on leaving, every request is cut off."""

    def __init__(
        self,
        url: str,
        clock: Clock,
        rng: Random,
        *,
        report_url: str | None = None,
    ) -> None:
        """rng: draws the prompts; no two share a beginning, so no prefix cache can help.

        report_url: where the engine's plug-in reports, if not at `url` itself.
        """
        self.url = url.rstrip("/")
        self.report_url = (report_url or url).rstrip("/")
        self.model = ""
        self._clock = clock
        self._rng = rng
        self._steered = False
        self._token_ids = range(VOCABULARIES[0])
        self._orders = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: dict[TokenStream, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    # --- completions -------------------------------------------------------------------------

    def start(self, prompt_tokens: int, output_tokens: int) -> TokenStream:
        """Send a prompt of random tokens and return its stream, which fills as tokens come."""
        ids = self._token_ids
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": [ids[int(self._rng.random() * len(ids))] for _ in range(prompt_tokens)],
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
        }
        if self._steered:
            order = EngineOrder(REPORT_READER, next(self._orders), TBT_TARGET_S)
            body["vllm_xargs"] = {XARGS_KEY: encode_order(order)}
        stream = TokenStream(prompt_tokens, output_tokens, self._clock.now_s())
        task = asyncio.create_task(self._read(stream, msgspec.json.encode(body)))
        self._tasks.add(task)
        self._running[stream] = task
        task.add_done_callback(self._tasks.discard)
        return stream

    def stop(self, stream: TokenStream) -> None:
        """Leave a stream, which makes the engine abort it."""
        stream.ended = True
        if task := self._running.get(stream):
            task.cancel()

    async def _read(self, stream: TokenStream, body: bytes) -> None:
        headers = {"content-type": "application/json", TBT_HEADER: f"{TBT_TARGET_S * 1e3:g}"}
        try:
            async with self._session.post(
                f"{self.url}/v1/completions", data=body, headers=headers
            ) as answer:
                if answer.status != 200:
                    said = (await answer.content.read(ERROR_BYTES_MAX)).decode(errors="replace")
                    stream.error = f"HTTP {answer.status}: {said.strip()}"
                    return
                async for received in answer.content.iter_any():
                    stream.take(received, self._clock.now_s())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            stream.error = f"{type(error).__name__}: {error}"
        finally:
            stream.ended = True
            self._running.pop(stream, None)

    # --- reports -----------------------------------------------------------------------------

    @asynccontextmanager
    async def reports(self) -> AsyncIterator[AsyncIterator[NodeReport]]:
        """Open the engine's report stream. Raises NoReports, or NodeError when it breaks."""
        async with self._session.get(
            f"{self.report_url}{REPORTS_PATH}", params={"router": REPORT_READER}
        ) as answer:
            if answer.status == 404:
                raise NoReports(f"{self.report_url} has no {REPORTS_PATH}")
            if answer.status != 200:
                raise NodeError(f"{self.report_url}{REPORTS_PATH} answered {answer.status}")
            yield self._lines(answer)

    async def _lines(self, answer: aiohttp.ClientResponse) -> AsyncIterator[NodeReport]:
        try:
            async for line in answer.content:
                yield decode(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NodeError(f"the reports of {self.report_url} broke off: {error!r}") from None

    # --- facts -------------------------------------------------------------------------------

    async def facts(self, model: str | None) -> EngineFacts:
        """Ask the engine what it is. `model`: None takes the first one it lists.

        Raises ConfigError when it cannot be reached or does not serve the model, NodeError when it
        refuses every prompt.
        """
        try:
            listed = await self._json("/v1/models")
            entries = {str(one["id"]): one for one in listed["data"]}
            version = await self._version()
            name = model or next(iter(entries), None)
            if name not in entries:
                served = ", ".join(entries) or "nothing"
                raise ConfigError(f"--model {name}: the engine serves {served}")
            self.model = name
            # Before its first step a plug-in has nothing to report, so the trial comes first.
            await self._find_vocabulary()
            first = await self._first_report()
            kv_tokens = first.kv_capacity_tokens if first else await self._kv_capacity_tokens()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ConfigError(f"--url {self.url}: cannot be reached: {error}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--url {self.url}: is no OpenAI endpoint: {error!r}") from None
        self._steered = first is not None
        return EngineFacts(
            model=name,
            version=version,
            context_tokens_max=entries[name].get("max_model_len"),
            kv_capacity_tokens=kv_tokens or None,
            chunk_tokens_max=(first.chunk_tokens_max or None) if first else None,
            reports=first is not None,
        )

    async def _find_vocabulary(self) -> None:
        """Make prompts of the largest of VOCABULARIES that the engine takes.

        Raises NodeError with the engine's words when it takes none.
        """
        for tokens in VOCABULARIES:
            self._token_ids = range(tokens - 1, tokens)
            trial = self.start(1, 1)
            await self._running[trial]
            if not trial.error:
                self._token_ids = range(int(tokens * SPECIAL_IDS_FRAC), tokens)
                return
        raise NodeError(f"{self.url} refuses every prompt: {trial.error}")

    async def _json(self, path: str) -> Any:
        async with self._session.get(self.url + path) as answer:
            answer.raise_for_status()
            return json.loads(await answer.read())

    async def _version(self) -> str:
        async with self._session.get(f"{self.url}/version") as answer:
            return str(json.loads(await answer.read())["version"]) if answer.ok else "unknown"

    async def _first_report(self) -> NodeReport | None:
        """Return one report, or None from an engine that makes none."""
        try:
            async with self.reports() as reports:
                return await anext(reports)
        except NoReports:
            return None
        except StopAsyncIteration:
            raise NodeError(f"the reports of {self.report_url} ended at once") from None

    async def _kv_capacity_tokens(self) -> int | None:
        """Return the KV room as vLLM's metrics give it: in tokens, or as blocks of a size."""
        async with self._session.get(f"{self.url}/metrics") as answer:
            page = await answer.text() if answer.status == 200 else ""
        return read_metrics(page).kv_capacity_tokens
