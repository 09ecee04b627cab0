"""Facts in, orders out, over real sockets: the two-step, targets, refusals, retries and cancels."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

from fakenode import KV_PARAMS
from spillway.core.chunks import ChunkPlan
from spillway.core.errors import InvariantViolation
from spillway.core.events import NodeLost


async def silent(node, got) -> None:
    await asyncio.sleep(60)


# --- the two paths -------------------------------------------------------------------------------


async def test_the_prefill_path_takes_two_steps(bench, body) -> None:
    prefill, decode, server = await bench.pair()
    body["custom"] = {"z": 1}
    headers = (
        "Authorization: Bearer key",
        "X-Request-Id: client-1",
        "traceparent: 00-ab",
        "X-A: b",
    )
    answer = await bench.ask(server, body, headers=headers)

    first, second = prefill.posts[0], decode.posts[0]
    assert first.target == second.target == "/v1/completions"
    assert first.json["kv_transfer_params"]["do_remote_decode"] is True
    assert (first.json["max_tokens"], first.json["stream"]) == (1, False)
    assert first.json["custom"] == {"z": 1}
    sent = json.dumps(body).encode()
    kv = KV_PARAMS.encode()
    assert second.body == sent[:-1] + b',"kv_transfer_params":' + kv + b"}"
    for got in (first, second):
        assert got.headers["authorization"] == "Bearer key"
        assert got.headers["x-request-id"] == "client-1"
        assert got.headers["traceparent"] == "00-ab"
        assert got.headers["x-a"] == "b"
        assert got.headers["x-slo-tbt-ms"] == "60"
    ids = [got.headers["x-spillway-dispatch"] for got in (first, second)]
    assert ids == [f"{server.shell.router_id}:1", f"{server.shell.router_id}:2"]

    assert (answer.status, answer.complete) == (200, True)
    assert answer.headers["x-spillway-route"] == "prefill"
    assert answer.headers["x-spillway-reason"] == "static"
    assert answer.headers["x-request-id"] == "client-1"
    assert answer.body.count(b"data: ") == 4
    assert server.shell.live == {}


async def test_a_deflected_request_is_the_clients_own_bytes(bench, until, deflect) -> None:
    policy = deflect(ChunkPlan(((512, 3), (128, 2)), 0.1, 0.05), execute_plan=True)
    prefill, decode, server = await bench.pair(policy)
    raw = b'{ "zeta":1.50,"model":"m","prompt" : "h\\u00e9llo" , "stream":true, "a":null}  '
    answer = await bench.ask(server, raw, path="/v1/completions?x=1")
    assert (decode.posts[0].body, decode.posts[0].target) == (raw, "/v1/completions?x=1")
    assert decode.posts[0].headers["x-spillway-chunks"] == "512*3,128*2"
    assert prefill.posts == []
    assert answer.headers["x-spillway-route"] == "deflected"
    assert answer.headers["x-spillway-reason"] == "faster_on_decode"


async def test_a_request_without_an_id_gets_one_and_hop_headers_stay_behind(
    bench, body, deflect
) -> None:
    _, decode, server = await bench.pair(deflect())
    headers = (
        "Connection: keep-alive, X-Hop",
        "X-Hop: 1",
        "TE: trailers",
        "Proxy-Authorization: x",
    )
    answer = await bench.ask(server, body, headers=(*headers, "X-Spillway-Dispatch: evil:9"))
    got = decode.posts[0].headers
    assert got["x-request-id"] == answer.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{8}-1", got["x-request-id"])
    assert not {"x-hop", "te", "proxy-authorization", "connection"} & got.keys()
    assert got["x-spillway-dispatch"].startswith(server.shell.router_id)


async def test_a_chat_goes_to_the_chat_path(bench) -> None:
    prefill, decode, server = await bench.pair()
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    answer = await bench.ask(server, chat, path="/v1/chat/completions")
    assert (prefill.posts[0].target, decode.posts[0].target) == ("/v1/chat/completions",) * 2
    assert answer.json["choices"][0]["text"] == "t0 t1"


async def test_the_same_id_twice_at_once_is_two_requests(bench, body, until, deflect) -> None:
    _, decode, server = await bench.pair(deflect())
    decode.on_post = silent
    clients = [await bench.client(server) for _ in range(2)]
    for client in clients:
        client.post(body, headers=("x-request-id: same",))
    await until(lambda: len(decode.posts) == 2)
    assert list(server.shell.live) == ["same", "same#1"]
    assert {got.headers["x-request-id"] for got in decode.posts} == {"same"}


async def test_connections_to_nodes_are_reused(bench, body) -> None:
    prefill, decode, server = await bench.pair(health_interval_s=60.0)
    for _ in range(5):
        assert (await bench.ask(server, body)).status == 200
    assert len({got.conn for got in prefill.posts}) == 1
    assert len({got.conn for got in decode.posts}) == 1


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "ttft_ms", "tbt_ms"),
    [
        ((), "1000", "60"),
        (("x-slo-class: batch",), "30000", "500"),
        (("x-slo-class: batch", "x-slo-tbt-ms: 99.5"), "30000", "99.5"),
        (("x-slo-ttft-ms: 250",), "250", "60"),
    ],
)
async def test_targets_come_from_a_class_and_from_headers(
    bench, body, headers, ttft_ms: str, tbt_ms: str, deflect
) -> None:
    _, decode, server = await bench.pair(deflect())
    await bench.ask(server, body, headers=headers)
    got = decode.posts[0].headers
    assert (got["x-slo-ttft-ms"], got["x-slo-tbt-ms"]) == (ttft_ms, tbt_ms)
    assert "x-slo-class" not in got
    asked = server.shell.decisions.recent(1)[0].request
    assert asked.slo_tbt_s == float(tbt_ms) / 1000


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("x-slo-ttft-ms: soon", "x-slo-ttft-ms"),
        ("x-slo-tbt-ms: -1", "x-slo-tbt-ms"),
        ("x-slo-tbt-ms: 0", "x-slo-tbt-ms"),
        ("x-slo-tbt-ms: nan", "x-slo-tbt-ms"),
        ("x-slo-tbt-ms: inf", "x-slo-tbt-ms"),
        ("x-slo-class: gold", "batch, default"),
        ("x-request-id: " + "x" * 200, "x-request-id"),
        ("content-encoding: gzip", "compressed"),
    ],
)
async def test_a_bad_header_is_a_bad_request(bench, body, header: str, named: str) -> None:
    prefill, decode, server = await bench.pair()
    answer = await bench.ask(server, body, headers=(header,))
    assert answer.status in (400, 415)
    assert named in answer.error["message"]
    assert prefill.posts == decode.posts == []


# --- refused unseen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"{", 400, "JSON"),
        (b'{"model":"m","prompt":[1,"a"]}', 400, "prompt"),
        (b'{"model":"m"}', 400, "prompt"),
        (b'{"model":"m","prompt":"x","kv_transfer_params":{"do_remote_prefill":true}}', 400, "kv_"),
        (b'{"model":"m","prompt":"' + b"x" * 5000 + b'"}', 413, "5000 bytes"),
    ],
)
async def test_a_bad_body_is_refused_and_nothing_is_forwarded(
    bench, body: bytes, status: int, named: str
) -> None:
    prefill, decode, server = await bench.pair(body_bytes_max=5000)
    answer = await bench.ask(server, body)
    assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")
    assert named in answer.error["message"]
    assert prefill.posts == decode.posts == []
    assert server.shell.dispatcher.arrived == 0


async def test_an_unknown_model_is_404_once_every_list_is_known(bench, body, until) -> None:
    _, decode, server = await bench.pair()
    await until(lambda: not server.shell.models.may_exist("other"))
    body["model"] = "other"
    answer = await bench.ask(server, body)
    assert (answer.status, answer.error["param"]) == (404, "model")
    decode.models = ["m", "other"]  # loaded later: the miss has the list read again
    await until(lambda: server.shell.models.may_exist("other"))
    assert (await bench.ask(server, body)).status == 200


async def test_requests_beyond_the_limit_are_told_to_come_back(bench, body, until, deflect) -> None:
    _, decode, server = await bench.pair(deflect(), requests_max=2, retry_after_s=7)
    decode.on_post = silent
    clients = [await bench.client(server) for _ in range(2)]
    for client in clients:
        client.post(body)
    await until(lambda: len(server.shell.live) == 2)
    answer = await bench.ask(server, body)
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert answer.error["type"] == "rate_limit_error"
    clients[0].abort()
    await until(lambda: len(server.shell.live) == 1)


# --- the dispatcher's books ----------------------------------------------------------------------


async def test_every_request_ends_in_the_dispatchers_books_too(bench, body, until) -> None:
    _, _, server = await bench.pair()
    clients = [await bench.client(server) for _ in range(20)]
    for number, client in enumerate(clients):
        client.post({**body, "stream": number % 2 == 0})
    for client in clients:
        assert (await client.answer()).complete
    dispatcher = server.shell.dispatcher
    assert (dispatcher.live_requests, dispatcher.arrived) == (0, 20)
    assert sum(dispatcher.counts) == 20
    assert dispatcher.ignored_events == 0
    assert all(node.outstanding == 0 for node in dispatcher.ledger.nodes.values())


async def test_lengths_are_learned_from_usage(bench, body) -> None:
    _, _, server = await bench.pair()
    await bench.ask(server, {**body, "stream": False})
    assert server.shell.dispatcher.ledger.lengths.by_class == {"default": 2}
    chat = {"model": "m", "messages": ["x" * 4000]}
    before = await bench.ask(server, chat, path="/v1/chat/completions")
    assert before.status == 200
    await bench.ask(server, chat, path="/v1/chat/completions")
    sizes = [one.request.prompt_tokens for one in server.shell.decisions.recent(2)]
    assert sizes[0] < sizes[1]  # the prefill leg said 7 tokens for 4 KB


async def test_a_violated_invariant_stops_the_router(bench) -> None:
    _, _, server = await bench.pair()
    server.shell.dispatcher.now_s = float("inf")
    with pytest.raises(InvariantViolation):
        server.shell.tell(NodeLost("d0", "test"))
    assert isinstance(server.broken.result(), InvariantViolation)
    server.shell.dispatcher.now_s = 0.0


async def test_a_router_whose_books_are_wrong_still_answers_everybody_when_it_stops(
    bench, body, until, monkeypatch
) -> None:
    async def silent(node, got) -> None:
        await got.left.wait()

    prefill, _, server = await bench.pair()
    prefill.on_post = silent
    clients = [await bench.client(server) for _ in range(2)]
    for client in clients:
        client.post(body)
    await until(lambda: len(server.shell.live) == 2)

    def contradict(event, now_s):
        raise InvariantViolation("the books are wrong")

    monkeypatch.setattr(server.shell.dispatcher, "handle", contradict)
    server.shell.stop()
    for client in clients:
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
    assert isinstance(server.broken.result(), InvariantViolation)
