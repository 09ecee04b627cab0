"""Asks engines what they are: who answers, what they serve, and how they were started.

For `spillway check`, and for the router where an engine has no plug-in that tells it. Every
question is a GET with a bound on its time and size; what a node does not answer is noted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httptools

from spillway.core.errors import NodeError
from spillway.router.fetch import Unchunker
from spillway.router.health import HEALTH_TARGET
from spillway.router.http_client import Fault, Framing, ResponseHead, UpstreamConnection
from spillway.router.pool import NodePool
from spillway.router.question import Question
from spillway.router.settings import RouterSettings
from spillway.wire.config import Node
from spillway.wire.enginepages import (
    METRICS_PATH,
    SERVER_INFO_PATH,
    VERSION_PATH,
    CacheFacts,
    ServerInfo,
    read_metrics,
    read_server_info,
    read_version,
)
from spillway.wire.openai import MODELS_PATH, Fields, read_models
from spillway.wire.report import REPORTS_PATH, NodeReport, decode

PAGE_S = 10.0
SERVER_INFO_S = 60.0  # the first time vLLM looks at its whole machine, which took 10 s
FIRST_REPORT_S = 2.0  # eight heartbeats; before its first step a plug-in says nothing
READER = "check"  # how we name ourselves where a router would


@dataclass(slots=True, kw_only=True)
class NodeAnswers:
    """What one node said. Empty or None: it did not say.

    fault: why it cannot be used at all.  faults: questions that went wrong, by page.
    has_reports: whether there is a report stream; None: nobody answers where it should be.
    """

    node: Node
    fault: str = ""
    faults: dict[str, str] = field(default_factory=dict)
    version: str = ""
    models: Fields = field(default_factory=dict)
    cache: CacheFacts = field(default_factory=CacheFacts)
    info: ServerInfo | None = None
    has_reports: bool | None = None
    report: NodeReport | None = None


async def dial(nodes: Sequence[Node], settings: RouterSettings) -> list[NodeAnswers]:
    """Return what each node says, in order; all are asked at once."""
    return list(await asyncio.gather(*(_dial_one(node, settings) for node in nodes)))


async def ask_server_info(pool: NodePool, settings: RouterSettings) -> ServerInfo | None:
    """Return an engine's start-up settings; None where it does not tell them.

    Raises NodeError when the answer is something else.
    """
    status, content = await _get(pool, SERVER_INFO_PATH, settings, SERVER_INFO_S)
    return read_server_info(content) if status == 200 else None


def key_lines(settings: RouterSettings) -> bytes:
    """Return the header line that identifies us to an engine, or nothing."""
    key = settings.engine_api_key
    return b"authorization: Bearer %b\r\n" % key.encode() if key else b""


async def _dial_one(node: Node, settings: RouterSettings) -> NodeAnswers:
    answers = NodeAnswers(node=node)
    pool = NodePool(node.spec.node_id, node.url, settings)
    try:
        status, content = await _get(pool, HEALTH_TARGET.decode(), settings, PAGE_S)
        if not status:
            answers.fault = content.decode()
        elif status >= 300:
            answers.fault = f"/health answers {status}"
        else:
            await asyncio.gather(
                _pages(pool, settings, answers),
                _server_info(pool, settings, answers),
                _reports(pool, settings, answers),
            )
    finally:
        pool.close()
    return answers


async def _pages(pool: NodePool, settings: RouterSettings, answers: NodeAnswers) -> None:
    """Ask for the pages that every engine has."""
    for path in (VERSION_PATH, MODELS_PATH, METRICS_PATH):
        status, content = await _get(pool, path, settings, PAGE_S)
        if status != 200:
            answers.faults[path] = f"answers {status}" if status else content.decode()
            continue
        try:
            if path == VERSION_PATH:
                answers.version = read_version(content)
            elif path == MODELS_PATH:
                answers.models = read_models(content)
            else:
                answers.cache = read_metrics(content.decode(errors="replace"))
        except NodeError as error:
            answers.faults[path] = str(error)


async def _server_info(pool: NodePool, settings: RouterSettings, answers: NodeAnswers) -> None:
    try:
        answers.info = await ask_server_info(pool, settings)
    except NodeError as error:
        answers.faults[SERVER_INFO_PATH] = str(error)


async def _reports(pool: NodePool, settings: RouterSettings, answers: NodeAnswers) -> None:
    """Listen to the report stream until it has said something."""
    url = answers.node.report_url
    own_pool = NodePool(answers.node.spec.node_id, url, settings) if url else pool
    first = _FirstLine(settings.report_line_bytes_max)
    target = f"{REPORTS_PATH}?router={READER}".encode()
    first.leg = own_pool.get(first, target, key_lines(settings))
    try:
        async with asyncio.timeout(FIRST_REPORT_S):
            line = await first.line
        answers.report = decode(line)
    except TimeoutError:
        if first.status == 0:
            answers.faults[REPORTS_PATH] = Fault.SILENT.value
    except NodeError as error:
        answers.faults[REPORTS_PATH] = str(error)
    finally:
        first.close()
        if url:
            own_pool.close()
    answers.has_reports = None if not first.status else first.status == 200
    if first.status == 404 and not url:
        answers.faults.pop(REPORTS_PATH, None)


async def _get(
    pool: NodePool, path: str, settings: RouterSettings, timeout_s: float
) -> tuple[int, bytes]:
    """Return (status, content), or (0, what went wrong)."""
    answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def answered(status: int, content: bytes) -> None:
        if not answer.done():
            answer.set_result((status, content))

    question = Question(answered, settings.answer_bytes_max)
    question.ask(pool, path.encode(), key_lines(settings), timeout_s)
    try:
        return await answer
    finally:
        question.cancel()


class _FirstLine:
    """Takes the first line of an endless answer. It is an `AnswerSink`.

    line: resolves to it, or to a NodeError.  status: 0 until the head has come.
    leg: the connection while it is ours; one whose answer has ended may already carry another.
    """

    def __init__(self, bytes_max: int) -> None:
        self.line: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.leg: UpstreamConnection | None = None
        self._bytes_max = bytes_max
        self._content = b""
        self._unchunker: Unchunker | None = None

    def on_head(self, head: ResponseHead) -> None:
        self.status = head.status
        if head.status != 200:
            self._fail(f"answers {head.status}")
        elif head.framing is Framing.CHUNKED:
            self._unchunker = Unchunker()

    def on_body(self, data: bytes) -> None:
        if self.line.done():
            return
        with suppress(httptools.HttpParserError):  # no line can come of it
            self._content += self._unchunker.feed(data) if self._unchunker else data
        line, newline, _ = self._content.partition(b"\n")
        if newline:
            self.line.set_result(line)
        elif len(self._content) > self._bytes_max:
            self._fail("sends no lines")

    def on_end(self) -> None:
        self.leg = None
        self._fail("ended at once")

    def on_fault(self, fault: Fault) -> None:
        self.leg = None
        self._fail(fault.value)

    def close(self) -> None:
        """Listen no more."""
        if self.leg is not None:
            self.leg.abort()

    def _fail(self, text: str) -> None:
        if not self.line.done():
            self.line.set_exception(NodeError(text))
