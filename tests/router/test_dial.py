"""Asking nodes what they are, over real sockets: scripted ones, and fake engines of every kind."""

from __future__ import annotations

import asyncio

from fakenode import SSE_HEAD, FakeNode, Got, chunk, json_response, response
from spillway.core.types import ChunkMode, Role
from spillway.fakeengine.engine import EngineSettings, start_engine
from spillway.router import dial as dialling
from spillway.router.dial import NodeAnswers, dial
from spillway.router.settings import RouterSettings
from spillway.wire.config import Node
from spillway.wire.enginepages import METRICS_PATH, VERSION_PATH
from spillway.wire.report import REPORTS_PATH

SETTINGS = RouterSettings(engine_api_key="secret", connect_s=0.5, report_line_bytes_max=4096)


async def ask(node: FakeNode, report_url: str = "") -> NodeAnswers:
    (answers,) = await dial([Node(node.spec, node.url, report_url)], SETTINGS)
    return answers


async def test_engines_of_every_kind_tell_what_they_are() -> None:
    kinds = [
        EngineSettings(role=Role.PREFILL, stock=True),
        EngineSettings(role=Role.DECODE),
        EngineSettings(role=Role.DECODE, stock=True, chunk_tokens_max=320, dev_mode=True),
    ]
    engines = [await start_engine(kind) for kind in kinds]
    nodes = [Node(one.backend.spec, one.url) for one in engines]
    try:
        stock, plugin, dev = await dial(nodes, SETTINGS)
    finally:
        for engine in engines:
            await engine.close()
    for answers in (stock, plugin, dev):
        assert (answers.fault, answers.faults) == ("", {})
        assert list(answers.models) == ["fake-llama"]
        assert answers.version.endswith("+fake")
        assert answers.cache.kv_capacity_tokens == answers.node.spec.kv_capacity_tokens
        assert answers.cache.has_nixl
    assert (stock.has_reports, stock.report, stock.info) == (False, None, None)
    assert plugin.report is not None
    assert plugin.report.chunk_mode is ChunkMode.ENGINE
    assert dev.info is not None
    assert dev.info.scheduler_config.chunk_tokens_max == 320
    assert dev.info.kv_transfer_config is not None
    assert dev.info.kv_transfer_config.role is Role.DECODE


async def test_a_node_that_refuses_or_is_unwell_is_asked_no_further(bench) -> None:
    gone, sick = await bench.node("d0"), await bench.node("d1")
    await gone.stop()
    sick.health = 503
    assert (await ask(gone)).fault == "connection_refused"
    assert (await ask(sick)).fault == "/health answers 503"
    assert [got.target for got in sick.gets] == ["/health"]


async def test_every_question_carries_the_key_and_what_fails_is_named(bench) -> None:
    node = await bench.node("d0")
    answers = await ask(node)
    assert set(answers.faults) == {VERSION_PATH, METRICS_PATH}
    assert answers.faults[VERSION_PATH] == "answers 404"
    assert list(answers.models) == ["m"]
    assert len(node.gets) == 6
    assert {got.headers.get("authorization") for got in node.gets} == {"Bearer secret"}


async def test_a_report_stream_that_says_nothing_yet_is_silent(bench, monkeypatch) -> None:
    monkeypatch.setattr(dialling, "FIRST_REPORT_S", 0.05)

    async def silent(node: FakeNode, got: Got) -> None:
        got.writer.write(SSE_HEAD)
        await asyncio.sleep(60)

    node = await bench.node("d0")
    node.on_reports = silent
    answers = await ask(node)
    assert (answers.has_reports, answers.report) == (True, None)
    assert REPORTS_PATH not in answers.faults


async def test_what_is_no_report_is_a_fault(bench) -> None:
    async def nonsense(node: FakeNode, got: Got) -> None:
        got.writer.write(SSE_HEAD + chunk(b'{"hello": 1}\n'))

    async def endless(node: FakeNode, got: Got) -> None:
        got.writer.write(response(200, b"x" * 5000))

    for on_reports, fault in ((nonsense, "not a node report"), (endless, "sends no lines")):
        node = await bench.node("d0")
        node.on_reports = on_reports
        assert fault in (await ask(node)).faults[REPORTS_PATH]


async def test_reports_are_looked_for_where_the_plug_in_has_its_port(bench) -> None:
    node, port = await bench.node("d0"), await bench.node("d0")
    absent = await ask(node, port.url)
    assert absent.has_reports is False
    assert absent.faults[REPORTS_PATH] == "answers 404"
    assert not any(got.target.startswith(REPORTS_PATH) for got in node.gets)
    await port.stop()
    assert (await ask(node, port.url)).has_reports is None


async def test_another_servers_info_is_a_fault(bench) -> None:
    node = await bench.node("d0")

    async def other(fake: FakeNode, got: Got) -> None:
        got.writer.write(json_response(200, {"vllm_config": "as text"}))

    node._answer_404 = other
    answers = await ask(node)
    assert answers.info is None
    assert any(path.startswith("/server_info") for path in answers.faults)
