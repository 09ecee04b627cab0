"""Spans as a collector gets them over a socket: the tree, its times, its ids, its names."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from fakenode import answer_decode, json_response
from otlpreceiver import OtlpReceiver, attributes
from spillway.core.chunks import ChunkPlan
from spillway.core.errors import ConfigError
from spillway.router import otlp
from spillway.wire.tracingconfig import TracingConfig

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = [f"traceparent: 00-{TRACE}-{SPAN}-01", "tracestate: vendor=x"]
ROOT = "POST /v1/completions"


@pytest.fixture
async def collector() -> AsyncIterator[OtlpReceiver]:
    pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
    collector = await OtlpReceiver().start()
    yield collector
    collector.stop()


def trace_to(server, collector: OtlpReceiver, **keys) -> None:
    config = TracingConfig(**{"endpoint": collector.endpoint, "sample_frac": 1.0, **keys})
    server.trace(config)


async def sent(server) -> None:
    await server._spans.flush()


def by_name(collector: OtlpReceiver) -> dict[str, Any]:
    spans = {span.name: span for span in collector.spans}
    assert len(spans) == len(collector.spans), "one of each"
    return spans


def within(inner: Any, outer: Any) -> bool:
    return (
        outer.start_time_unix_nano
        <= inner.start_time_unix_nano
        <= inner.end_time_unix_nano
        <= outer.end_time_unix_nano
    )


async def test_a_disaggregated_request_is_a_tree_of_the_parts_of_its_ttft(
    bench, body, collector: OtlpReceiver
) -> None:
    prefill, decode, server = await bench.pair(policy="least-loaded")
    trace_to(server, collector)
    assert (await bench.ask(server, body, headers=CLIENT)).status == 200
    await sent(server)
    spans = by_name(collector)
    root = spans[ROOT]
    assert (root.trace_id.hex(), root.parent_span_id.hex()) == (TRACE, SPAN)
    assert root.trace_state == "vendor=x"
    assert root.kind == root.SPAN_KIND_SERVER
    tree = {
        "spillway.queue": ROOT,
        "spillway.prefill": ROOT,
        "spillway.handover": ROOT,
        "spillway.decode": ROOT,
        "spillway.first_token": "spillway.decode",
        "spillway.stream": "spillway.decode",
    }
    assert set(spans) == {ROOT, *tree}
    for name, parent in tree.items():
        assert spans[name].parent_span_id == spans[parent].span_id, name
        assert spans[name].trace_id == root.trace_id
        assert within(spans[name], spans[parent]), name
    order = ["queue", "prefill", "handover", "decode"]
    for before, after in pairwise(order):
        one, two = spans[f"spillway.{before}"], spans[f"spillway.{after}"]
        assert one.end_time_unix_nano == two.start_time_unix_nano, after
    first, stream = spans["spillway.first_token"], spans["spillway.stream"]
    assert first.end_time_unix_nano == stream.start_time_unix_nano
    for node, name in ((prefill, "spillway.prefill"), (decode, "spillway.decode")):
        passed_on = node.posts[0].headers["traceparent"]
        assert passed_on == f"00-{TRACE}-{spans[name].span_id.hex()}-01"
        assert spans[name].kind == root.SPAN_KIND_CLIENT
        assert attributes(spans[name])["spillway.node"] == node.spec.node_id


async def test_a_span_says_what_was_decided_predicted_and_seen(
    bench, body, collector: OtlpReceiver, deflect
) -> None:
    plan = ChunkPlan(((64, 3), (8, 1)), 0.2, 0.05)
    nodes = await bench.node("p0"), await bench.node("d0")
    server = await bench.router(*nodes, policy=deflect(plan))
    trace_to(server, collector, service_name="edge")
    asked = {**body, "stream": False}
    assert (await bench.ask(server, asked, headers=["x-request-id: mine"])).status == 200
    await sent(server)
    root = by_name(collector)[ROOT]
    found = attributes(root)
    assert root.parent_span_id == b""
    assert found["spillway.policy"] == "always-deflect"
    assert (found["spillway.verdict"], found["spillway.reason"]) == (
        "deflected",
        "faster_on_decode",
    )
    assert found["spillway.nodes"] == ["d0"]
    assert found["spillway.chunk_plan"] == "64*3,8*1"
    assert found["spillway.predicted_ttft"] == 0.25
    ttft_ns = found["gen_ai.response.time_to_first_chunk"] * 1e9
    [first] = collector.named("spillway.first_token")
    assert ttft_ns == pytest.approx(first.end_time_unix_nano - root.start_time_unix_nano, abs=2e3)
    assert found["http.response.status_code"] == 200
    assert (found["http.request.method"], found["http.route"]) == ("POST", "/v1/completions")
    assert (found["gen_ai.operation.name"], found["gen_ai.request.model"]) == (
        "text_completion",
        "m",
    )
    assert (found["gen_ai.request.max_tokens"], found["gen_ai.usage.output_tokens"]) == (5, 2)
    assert found["spillway.request.id"] == "mine"
    assert attributes(first)["spillway.predicted.queue"] == 0.25
    assert collector.resource["service.name"] == "edge"
    assert collector.resource["service.instance.id"] == server.shell.router_id


async def test_failures_are_on_the_leg_and_on_the_request(
    bench, body, collector: OtlpReceiver
) -> None:
    _, decode, server = await bench.pair(retries_max=0)

    async def fail(node, got) -> None:
        got.writer.write(json_response(500, {}))

    decode.on_post = fail
    trace_to(server, collector)
    assert (await bench.ask(server, body)).status >= 500
    await sent(server)
    spans = by_name(collector)
    for name in (ROOT, "spillway.decode"):
        assert spans[name].status.code == spans[name].status.STATUS_CODE_ERROR
        assert attributes(spans[name])["error.type"] == "http_500"
    assert "spillway.stream" not in spans
    assert spans["spillway.prefill"].status.code == 0
    assert attributes(spans[ROOT])["spillway.outcome"] == "failed"


async def test_a_request_that_nobody_could_take_has_only_waited(
    bench, body, collector: OtlpReceiver
) -> None:
    _, _, server = await bench.pair()
    trace_to(server, collector)
    server.fleet.drain("d0")
    server.fleet.drain("p0")
    assert (await bench.ask(server, body)).status == 503
    await sent(server)
    spans = by_name(collector)
    assert set(spans) == {ROOT, "spillway.queue"}
    assert attributes(spans[ROOT])["error.type"] == "rejected"


async def test_a_collector_that_fails_costs_spans_and_no_request(
    bench, body, collector: OtlpReceiver
) -> None:
    _, _, server = await bench.pair()
    collector.status = 400
    trace_to(server, collector)
    assert (await bench.ask(server, body)).status == 200
    await sent(server)
    tracer = server.shell.tracer
    assert (tracer.dropped["export_failed"], tracer.sent, collector.posts) == (1, 0, 1)
    collector.status = 200
    assert (await bench.ask(server, body)).status == 200
    await sent(server)
    assert (tracer.dropped["export_failed"], tracer.sent) == (1, 1)
    page = (await bench.page(server, "/metrics")).body.decode()
    assert "\nspillway_traces_sent_total 1" in page


async def test_requests_go_on_while_a_collector_does_not_answer(
    bench, body, collector: OtlpReceiver, monkeypatch
) -> None:
    _, _, server = await bench.pair()
    asked, answers = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    trace_to(server, collector)
    send = server._spans._send

    def hang(batch) -> bool:
        loop.call_soon_threadsafe(asked.set)
        asyncio.run_coroutine_threadsafe(answers.wait(), loop).result(10)
        return send(batch)

    monkeypatch.setattr(server._spans, "_send", hang)
    assert (await bench.ask(server, body)).status == 200
    flushing = asyncio.ensure_future(sent(server))
    await asked.wait()
    for _ in range(3):
        assert (await bench.ask(server, body)).status == 200
    assert not flushing.done()
    assert len(server.shell.tracer.ended) == 3
    answers.set()
    await flushing
    await sent(server)
    assert len(collector.named(ROOT)) == 4


async def test_a_router_that_stops_sends_what_is_left(bench, body, collector: OtlpReceiver) -> None:
    _, decode, server = await bench.pair()
    decode.on_post = answer_decode
    trace_to(server, collector)
    await bench.ask(server, body)
    bench.servers.remove(server)
    await server.close()
    assert len(collector.named(ROOT)) == 1


async def test_a_router_that_stops_waits_once_for_a_collector_that_fails(
    bench, body, collector: OtlpReceiver
) -> None:
    _, _, server = await bench.pair()
    collector.status = 400
    trace_to(server, collector)
    await bench.ask(server, body)
    tracer = server.shell.tracer
    tracer.ended.extend([tracer.ended[0]] * (4 * otlp.BATCH_REQUESTS))
    bench.servers.remove(server)
    await server.close()
    assert collector.posts == 1
    assert tracer.dropped["export_failed"] == 4 * otlp.BATCH_REQUESTS + 1
    assert not tracer.ended


async def test_spans_are_sent_once_a_second_by_themselves(
    bench, body, collector: OtlpReceiver, until, monkeypatch
) -> None:
    monkeypatch.setattr(otlp, "EVERY_S", 0.01)
    _, _, server = await bench.pair()
    trace_to(server, collector)
    await bench.ask(server, body)
    await until(lambda: collector.named(ROOT))


async def test_without_the_extra_the_remedy_is_named(bench, monkeypatch) -> None:
    _, _, server = await bench.pair()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"pip install 'spillway\[otel\]'"):
        server.trace(TracingConfig())
    assert server.shell.tracer is None
