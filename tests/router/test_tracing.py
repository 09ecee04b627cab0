"""Trace context on its way through the router, and what is noted for a request's spans."""

from __future__ import annotations

import pytest

from fakenode import json_response
from spillway.core.decide import Route
from spillway.router.tracing import Parent, Tracer, read_parent
from spillway.wire.tracingconfig import TracingConfig

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KEPT, NOT_KEPT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


def traced(server, **keys) -> Tracer:
    config = TracingConfig(**{"sample_frac": 1.0, **keys})
    server.shell.tracer = Tracer(config, server.shell.clock)
    return server.shell.tracer


def asked(parent: str = "", state: str = "") -> list[str]:
    lines = [f"Traceparent: {parent}"] if parent else []
    return [*lines, f"tracestate: {state}"] if state else lines


@pytest.mark.parametrize("parent", [KEPT, NOT_KEPT, "rubbish"])
async def test_without_traces_the_context_goes_through_to_both_legs(
    bench, body, parent: str
) -> None:
    prefill, decode, server = await bench.pair()
    await bench.ask(server, body, headers=asked(parent, "a=1,b=2"))
    for node in (prefill, decode):
        [got] = node.posts
        assert got.headers["traceparent"] == parent
        assert got.headers["tracestate"] == "a=1,b=2"


async def test_each_leg_passes_on_its_own_span(bench, body) -> None:
    prefill, decode, server = await bench.pair()
    tracer = traced(server)
    await bench.ask(server, body, headers=asked(KEPT, "a=1"))
    [done] = tracer.ended
    assert (done.trace.trace_id, done.trace.parent_id, done.trace.state) == (TRACE, SPAN, "a=1")
    legs = done.trace.legs
    assert [(leg.kind, leg.node_id) for leg in legs] == [("prefill", "p0"), ("decode", "d0")]
    for node, leg in zip((prefill, decode), legs, strict=True):
        [got] = node.posts
        assert got.head.lower().count(b"traceparent:") == 1
        assert got.headers["traceparent"] == f"00-{TRACE}-{leg.span_id}-01"
        assert got.headers["tracestate"] == "a=1"
    assert len({SPAN, done.trace.span_id, *(leg.span_id for leg in legs)}) == 4


async def test_what_the_client_does_not_keep_is_passed_on_as_it_came(bench, body) -> None:
    prefill, decode, server = await bench.pair()
    tracer = traced(server)
    await bench.ask(server, body, headers=asked(NOT_KEPT, "a=1"))
    assert not tracer.ended
    for node in (prefill, decode):
        assert node.posts[0].headers["traceparent"] == NOT_KEPT
        assert node.posts[0].headers["tracestate"] == "a=1"


@pytest.mark.parametrize("sample_frac", [0.0, 1.0])
async def test_without_a_parent_chance_decides_and_engines_are_told(
    bench, body, sample_frac: float
) -> None:
    prefill, decode, server = await bench.pair()
    tracer = traced(server, sample_frac=sample_frac)
    await bench.ask(server, body)
    found = [
        read_parent(node.posts[0].headers["traceparent"].encode()) for node in (prefill, decode)
    ]
    assert all(one is not None and one.is_sampled is bool(sample_frac) for one in found)
    assert len({one.trace_id for one in found if one}) == 1
    assert len(tracer.ended) == int(sample_frac)


@pytest.mark.parametrize(
    "lines",
    [
        asked("00-" + "0" * 32 + f"-{SPAN}-01", "a=1"),
        [*asked(KEPT), *asked(KEPT), "tracestate: a=1"],
    ],
)
async def test_a_context_that_cannot_be_read_begins_a_new_trace(bench, body, lines) -> None:
    prefill, _, server = await bench.pair()
    tracer = traced(server)
    await bench.ask(server, body, headers=lines)
    [done] = tracer.ended
    assert (done.trace.parent_id, done.trace.state) == ("", "")
    assert done.trace.trace_id != TRACE
    [got] = prefill.posts
    assert got.head.lower().count(b"traceparent:") == 1
    assert "tracestate" not in got.headers


async def test_what_was_decided_and_what_came_of_it_is_noted(bench, body, deflect) -> None:
    decode = await bench.node("d0")
    server = await bench.router(await bench.node("p0"), decode, policy=deflect())
    tracer = traced(server)
    await bench.ask(server, {**body, "stream": False})
    [done] = tracer.ended
    assert done.trace.decision is not None
    assert done.trace.decision.route is Route.DEFLECTED
    assert (done.outcome, done.status, done.output_tokens) == ("finished", 200, 2)
    assert done.predicted_s == 0.25
    assert done.arrival_s <= done.trace.decided_s <= done.first_byte_s <= done.ended_s
    assert [leg.kind for leg in done.trace.legs] == ["deflected"]


async def test_a_leg_that_failed_says_why_and_the_next_one_is_its_own(bench, body) -> None:
    prefill, one = await bench.node("p0"), await bench.node("d0")
    two = await bench.node("d1")

    async def refuse(node, got) -> None:
        got.writer.write(json_response(503, {}))

    one.on_post = refuse
    server = await bench.router(prefill, one, two)
    tracer = traced(server)
    assert (await bench.ask(server, body)).status == 200
    legs = tracer.ended[0].trace.legs
    assert [(leg.kind, leg.fault) for leg in legs] == [
        ("prefill", ""),
        ("decode", "http_503"),
        ("prefill", ""),
        ("decode", ""),
    ]
    assert legs[1].until_s > 0
    assert two.posts[0].headers["traceparent"].split("-")[2] == legs[3].span_id


async def test_a_full_queue_drops_and_counts(bench, body) -> None:
    _, _, server = await bench.pair()
    tracer = traced(server, queue_max=2)
    for _ in range(5):
        assert (await bench.ask(server, body)).status == 200
    assert len(tracer.ended) == 2
    assert tracer.dropped == {"queue_full": 3}
    page = (await bench.page(server, "/metrics")).body.decode()
    assert 'spillway_traces_dropped_total{kind="queue_full"} 3' in page


async def test_a_request_that_is_refused_leaves_nothing_behind(bench, body) -> None:
    _, _, server = await bench.pair()
    tracer = traced(server)
    assert (await bench.ask(server, {**body, "model": 7}, headers=asked(KEPT))).status == 400
    assert not tracer.ended
    assert not tracer._live


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (KEPT, Parent(TRACE, SPAN, True)),
        (NOT_KEPT, Parent(TRACE, SPAN, False)),
        (f"00-{TRACE}-{SPAN}-03", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", Parent(TRACE, SPAN, True)),
        (f"cc-{TRACE}-{SPAN}-01.", None),
        (f"00-{TRACE}-{SPAN}-01-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{TRACE.upper()}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE}-{SPAN}", None),
        ("", None),
    ],
)
def test_a_parent_is_read_by_the_letter_of_w3c(value: str, found: Parent | None) -> None:
    assert read_parent(value.encode()) == found
