"""The one port for operators of a router that runs as several worker processes.

It answers for all of them: it asks each on the port that only this process knows the token of, and
makes one page of theirs (`workerpages.py`). Changes go to every worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import parse_qs

from spillway.core.errors import NodeError, RequestError
from spillway.router.admin import DECISIONS_SHOWN, JSON_LINE, METRICS_LINE, PAGE_LINES, Page
from spillway.router.admin_port import NODES_PATH, OPEN_PAGES
from spillway.router.credentials import CHALLENGE, check_token, read_token
from spillway.router.dashboard import read_page
from spillway.router.http_server import ClientConnection, Request
from spillway.router.settings import RouterSettings
from spillway.router.workerpages import (
    merge_decisions,
    merge_figures,
    merge_health,
    merge_metrics,
    merge_nodes,
)

ASK_S_MAX = 5.0
ANSWER_BYTES_MAX = 64 * 1024 * 1024
GET_PATHS = ("/metrics", "/health", "/v1/models", "/debug/decisions", "/dashboard/data")
Answers = Mapping[int, tuple[int, bytes]]


class Crew(Protocol):
    """The workers. ports: the admin port of each that runs, by number."""

    workers_wanted: int
    restarts: int
    token: str

    @property
    def ports(self) -> Mapping[int, int]: ...


class WorkerPort:
    """Answers on the port for operators. It is the `Front` of its connections."""

    def __init__(self, crew: Crew, settings: RouterSettings) -> None:
        self.settings = settings
        self.connections: set[ClientConnection] = set()
        self.now_s = asyncio.get_running_loop().time()
        self._crew = crew
        self._token = read_token(settings)
        self._tasks: set[asyncio.Task[None]] = set()

    def on_request(self, conn: ClientConnection, request: Request) -> None:
        task = asyncio.ensure_future(self._respond(conn, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_bad_request(self, status: int) -> None:
        """Nothing is counted here: these are the operator's own."""

    def sweep(self) -> None:
        """Give up on connections that are past their time."""
        self.now_s = asyncio.get_running_loop().time()
        for conn in [conn for conn in self.connections if conn.deadline_s < self.now_s]:
            conn.expire()

    def close(self) -> None:
        for conn in list(self.connections):
            conn.transport.abort()
        for task in self._tasks:
            task.cancel()

    async def _respond(self, conn: ClientConnection, request: Request) -> None:
        try:
            page = await self._answer(request)
        except RequestError as error:
            if not conn.transport.is_closing():
                conn.refuse(request, error, CHALLENGE if error.status == 401 else b"")
        else:
            if not conn.transport.is_closing():
                conn.respond(request, page.status, page.body, page.lines)

    async def _answer(self, request: Request) -> Page:
        raw_path, _, raw_query = request.target.partition(b"?")
        path, query = raw_path.decode("latin-1"), raw_query.decode("latin-1")
        is_get = request.method == b"GET"
        if is_get and path == "/dashboard":
            return Page(200, read_page(), PAGE_LINES)
        if self._token and not (is_get and path in OPEN_PAGES):
            check_token(request, self._token)
        if is_get and (path in GET_PATHS or path == NODES_PATH):
            answers = await self._ask_all(request, b"")
            return self._merged(path, query, answers)
        if path in GET_PATHS:
            raise RequestError("this path takes GET", status=405)
        if not self._token:
            raise RequestError("changes need a token: set router.admin_token", status=403)
        answers = await self._ask_all(request, request.body)
        return _worst(answers)

    def _merged(self, path: str, query: str, answers: Answers) -> Page:
        crew = self._crew
        if path == "/health":
            status, body = merge_health(answers, len(crew.ports), crew.workers_wanted)
            return Page(status, body)
        good = {worker: body for worker, (status, body) in answers.items() if status == 200}
        if path == "/metrics":
            return Page(200, merge_metrics(good, list(crew.ports), crew.restarts), METRICS_LINE)
        if not good:
            return _worst(answers)
        if path == "/debug/decisions":
            count = parse_qs(query).get("n", [str(DECISIONS_SHOWN)])[-1]
            return Page(200, merge_decisions(good, int(count)))
        if path == "/dashboard/data":
            return Page(200, merge_figures(good), JSON_LINE + b"cache-control: no-store\r\n")
        if path == NODES_PATH:
            return Page(200, merge_nodes(good))
        return Page(200, good[min(good)])

    async def _ask_all(self, request: Request, body: bytes) -> Answers:
        """Return status and body of each worker that answers."""
        workers = dict(self._crew.ports)
        asked = [
            ask_worker(port, request.method, request.target, body, self._crew.token)
            for port in workers.values()
        ]
        got = await asyncio.gather(*asked, return_exceptions=True)
        answers = {}
        for worker, answer in zip(workers, got, strict=True):
            if isinstance(answer, tuple):
                answers[worker] = answer
            elif not isinstance(answer, NodeError):
                raise answer
        return answers


def _worst(answers: Answers) -> Page:
    """Return the answer of the worker that is least content."""
    if not answers:
        raise RequestError("no worker answers", status=503)
    return Page(*max(answers.values(), key=lambda answer: answer[0]))


async def ask_worker(
    port: int, method: bytes, target: bytes, body: bytes, token: str
) -> tuple[int, bytes]:
    """Return status and body of one question to a worker. Raises NodeError without an answer."""
    head = b"%b %b HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n" % (method, target)
    head += b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n" % (token.encode(), len(body))
    try:
        async with asyncio.timeout(ASK_S_MAX):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(head + body)
                answer = await reader.read(ANSWER_BYTES_MAX)
                while more := await reader.read(ANSWER_BYTES_MAX):
                    answer += more
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise NodeError(f"a worker does not answer: {error!r}") from error
    first, found, content = answer.partition(b"\r\n\r\n")
    words = first.split(b" ", 2)
    if not found or len(words) < 2 or not words[1].isdigit():
        raise NodeError("a worker ended in the middle of an answer")
    return int(words[1]), content
