"""Node reports: taken in order, dropped with a reason, and asked for again when a stream ends."""

from __future__ import annotations

import asyncio

import pytest

from fakenode import chunk
from spillway.core.types import ChunkMode, Role
from spillway.wire.report import NodeReport, encode

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def report(seq: int, **changes) -> bytes:
    fields = {
        "node_id": "whatever-it-calls-itself",
        "role": Role.DECODE,
        "seq": seq,
        "step": 10 * seq,
        "backlog_prompts": 1,
        "backlog_tokens": 100 * seq,
        "backlog_token_pairs": 5000.0,
        "decode_seqs": 3,
        "kv_used_tokens": 2000,
        "kv_capacity_tokens": 50_000,
        "tbt_s_min": 0.05,
        "chunk_mode": ChunkMode.ENGINE,
    }
    return encode(NodeReport(**{**fields, **changes}))


def streaming(*parts: bytes, then_end: bool = False):
    async def handler(node, got) -> None:
        got.writer.write(HEAD)
        for part in parts:
            got.writer.write(chunk(part))
            await asyncio.sleep(0.001)
        if then_end:
            got.writer.write(b"0\r\n\r\n")
        else:
            await asyncio.sleep(60)

    return handler


@pytest.fixture
async def start(bench):
    async def start(handler, **settings):
        node = await bench.node("d0")
        node.on_reports = handler
        server = await bench.router(node, **settings)
        return node, server, lambda: server.shell.dispatcher.ledger.nodes["d0"].view

    return start


async def test_a_report_becomes_what_is_believed_of_the_node(start, until) -> None:
    node, server, view = await start(streaming(report(1), report(2)))
    await until(lambda: view().backlog_tokens == 200)
    assert (view().reporting, view().decode_seqs, view().tbt_s_min) == (True, 3, 0.05)
    assert view().kv_capacity_tokens == 50_000
    assert server.shell.metrics.reports["d0"] == 2
    asked = [got.target for got in node.gets if "reports" in got.target]
    assert asked == [f"/spillway/reports?router={server.shell.router_id}"]


async def test_reports_may_be_cut_anywhere_and_come_together(start, until) -> None:
    data = report(1) + b"\n" + report(2) + report(3)
    parts = [data[at : at + 50] for at in range(0, len(data), 50)]
    _, server, view = await start(streaming(*parts))
    await until(lambda: view().backlog_tokens == 300)
    assert server.shell.metrics.reports["d0"] == 3
    assert not server.shell.metrics.reports_dropped


async def test_reports_out_of_order_are_dropped_and_counted(start, until) -> None:
    _, server, view = await start(streaming(report(5), report(4), report(5), report(6)))
    await until(lambda: view().backlog_tokens == 600)
    assert server.shell.metrics.reports["d0"] == 2
    assert dict(server.shell.metrics.reports_dropped) == {("d0", "out_of_order"): 2}


async def test_lines_that_are_no_reports_are_dropped_and_counted(start, until) -> None:
    _, server, view = await start(
        streaming(b"nonsense\n", report(1, role=Role.PREFILL), b'{"seq":2}\n', report(3))
    )
    await until(lambda: view().backlog_tokens == 300)
    assert dict(server.shell.metrics.reports_dropped) == {
        ("d0", "malformed"): 2,
        ("d0", "wrong_role"): 1,
    }


async def test_a_line_without_end_is_given_up(start, until) -> None:
    _, server, _ = await start(streaming(b"x" * 2000), report_line_bytes_max=1000)
    await until(lambda: server.shell.metrics.reports_dropped["d0", "too_long"] >= 2)


async def test_a_stream_that_ends_or_breaks_is_opened_again_and_may_count_anew(
    start, until
) -> None:
    node, server, view = await start(streaming(report(7), then_end=True))
    await until(lambda: server.shell.metrics.reports["d0"] >= 2)
    node.on_reports = streaming(report(1))
    await until(lambda: view().backlog_tokens == 100)
    node.drop_connections()
    await until(lambda: server.shell.metrics.reports_dropped["d0", "broken_off"] >= 1)
    assert view().backlog_tokens == 100  # old, and known to be: the age of the report grows


async def test_a_silent_stream_is_opened_again(start, until) -> None:
    _, server, _ = await start(streaming(report(1)), report_silence_s=0.03)
    await until(lambda: server.shell.metrics.reports["d0"] >= 2)
    assert server.shell.metrics.reports_dropped["d0", "silent"] >= 1


async def test_a_node_without_reports_is_left_to_the_ledger(start, until) -> None:
    node, server, view = await start(None, report_absent_retry_s=0.02)
    await until(lambda: sum("reports" in got.target for got in node.gets) >= 2)
    assert (view().reporting, view().usable) == (False, True)
    assert not server.shell.metrics.reports_dropped
    node.on_reports = streaming(report(1))
    await until(lambda: view().reporting)


async def test_an_error_page_is_counted_and_asked_again(start, until) -> None:
    async def broken(node, got) -> None:
        got.writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")

    _, server, _ = await start(broken)
    await until(lambda: server.shell.metrics.reports_dropped["d0", "http_500"] >= 2)


async def test_the_stream_of_a_node_that_comes_back_is_opened_at_once(start, until) -> None:
    node, server, view = await start(
        streaming(report(1)), report_retry_first_s=60.0, report_retry_max_s=60.0
    )
    await until(lambda: view().reporting)
    await node.stop()
    await until(lambda: not view().usable)
    await node.start()
    await until(lambda: view().usable and view().reporting)
    assert server.shell.metrics.reports["d0"] == 2


async def test_a_dispatch_that_a_report_has_seen_is_not_counted_twice(
    bench, deflect, body, until
) -> None:
    node = await bench.node("d0")
    said = asyncio.Queue()

    async def on_demand(node, got) -> None:
        got.writer.write(HEAD)
        while True:
            got.writer.write(chunk(await said.get()))

    async def silent(node, got) -> None:
        await asyncio.sleep(60)

    node.on_reports, node.on_post = on_demand, silent
    server = await bench.router(node, policy=deflect())

    def view():
        return server.shell.dispatcher.ledger.nodes["d0"].view

    said.put_nowait(report(1, backlog_tokens=0, backlog_prompts=0))
    await until(lambda: view().reporting)
    client = await bench.client(server)
    client.post({**body, "prompt": list(range(500))})
    await until(lambda: node.posts)
    assert (view().backlog_tokens, view().backlog_prompts) == (500, 1)
    seen = {server.shell.router_id: 1, "another": 99}
    said.put_nowait(report(2, backlog_tokens=480, backlog_prompts=1, dispatch_seen=seen))
    await until(lambda: view().backlog_tokens == 480)
    assert view().backlog_prompts == 1
