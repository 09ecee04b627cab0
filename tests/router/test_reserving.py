"""Leave to deflect: asked for only where others share the node, heeded, and never waited for."""

from __future__ import annotations

import asyncio

import pytest

from builders import make_report
from fakenode import answer_decode, chunk, json_response
from spillway.core.types import ChunkMode
from spillway.router import reserving
from spillway.wire.report import NodeReport, encode
from spillway.wire.reserve import RESERVE_PATH, encode_answer, read_ask

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
BODY = {"model": "m", "prompt": [1] * 40, "max_tokens": 4}


def report(**changes) -> NodeReport:
    return make_report(chunk_mode=ChunkMode.ENGINE, **changes)


def reporting(routers: int):
    async def handler(node, got) -> None:
        got.writer.write(HEAD + chunk(encode(report(routers=routers))))
        await asyncio.sleep(60)

    return handler


def answering(*answers):
    """Answer questions with what is given, in turn; the last one for ever. None says nothing."""
    asked = []

    async def handler(node, got) -> None:
        path, _, query = got.target.partition("?")
        if path != RESERVE_PATH:
            await answer_decode(node, got)
            return
        asked.append(read_ask(query))
        answer = answers[min(len(asked), len(answers)) - 1]
        if answer is None:
            await asyncio.sleep(60)
        got.writer.write(answer)

    return handler, asked


def said(verdict: str, **changes) -> bytes:
    status, body = encode_answer(reserving.Verdict(verdict), report(**changes))
    lines = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n\r\n"
    return lines.encode() + body


@pytest.fixture
async def start(bench, deflect, until):
    async def start(*answers, routers: int = 2):
        node = await bench.node("d0")
        node.on_reports = reporting(routers)
        node.on_post, asked = answering(*answers)
        server = await bench.router(node, policy=deflect())
        await until(lambda: server.shell.last_reports)
        return node, server, asked

    return start


def sent(node) -> int:
    return sum(not got.target.startswith(RESERVE_PATH) for got in node.posts)


async def test_a_node_of_ones_own_is_not_asked(start, bench) -> None:
    node, server, asked = await start(said("backlog"), routers=1)
    answer = await bench.ask(server, BODY)
    assert (answer.status, asked, sent(node)) == (200, [], 1)


async def test_a_shared_node_is_asked_first(start, bench) -> None:
    node, server, asked = await start(said("granted"))
    answer = await bench.ask(server, BODY)
    assert answer.status == 200
    (ask,) = asked
    assert (ask.router_id, ask.dispatch_id, ask.tokens) == (server.shell.router_id, 1, 40)
    assert ask.backlog_tokens_max == 10
    assert node.posts[-1].headers["x-spillway-dispatch"] == f"{ask.router_id}:1"
    assert dict(server.shell.metrics.reservations) == {("d0", "granted"): 1}


async def test_what_a_node_says_with_a_refusal_is_believed_at_once(start, bench) -> None:
    _, server, asked = await start(said("backlog", seq=2, backlog_tokens=9000), said("granted"))
    answer = await bench.ask(server, BODY)
    assert answer.status == 200
    assert [ask.dispatch_id for ask in asked] == [1, 2]
    assert asked[1].backlog_tokens_max == 9010
    counted = server.shell.metrics.reservations
    assert counted == {("d0", "backlog"): 1, ("d0", "granted"): 1}
    assert not server.shell.metrics.upstream_errors
    page = await bench.page(server, "/debug/decisions")
    assert [one.get("declined_by") for one in page.json["decisions"]] == ["d0", ""]


async def test_nobody_is_declined_for_ever(start, bench) -> None:
    node, server, asked = await start(said("kv"))
    answer = await bench.ask(server, BODY)
    assert (answer.status, len(asked), sent(node)) == (200, 2, 1)


async def test_a_question_without_an_answer_is_given_up(start, bench, monkeypatch) -> None:
    monkeypatch.setattr(reserving, "ANSWER_S_MAX", 0.01)
    node, server, asked = await start(None)
    answer = await bench.ask(server, BODY)
    assert (answer.status, len(asked), sent(node)) == (200, 2, 1)
    assert server.shell.metrics.reservations == {("d0", "silent"): 2}


@pytest.mark.parametrize("status", [404, 500])
async def test_an_engine_that_knows_no_reservations_is_used_all_the_same(
    start, bench, status
) -> None:
    node, server, _ = await start(json_response(status, {"error": "what?"}))
    answer = await bench.ask(server, BODY)
    assert (answer.status, sent(node)) == (200, 1)
    assert server.shell.metrics.reservations == {("d0", f"http_{status}"): 2}


async def test_a_client_that_leaves_while_the_node_is_asked_leaves_nothing(
    start, bench, until
) -> None:
    node, server, asked = await start(None)
    client = await bench.client(server)
    client.post(BODY)
    await until(lambda: asked)
    client.abort()
    await until(lambda: not server.shell.live)
    assert server.shell.dispatcher.live_requests == 0
    assert sent(node) == 0
