"""The pages beside the traffic."""

from __future__ import annotations

import json

import pytest

from fakenode import json_response


async def test_health_needs_both_pools_or_a_safe_deflection(bench, until) -> None:
    prefill, _, server = await bench.pair()
    await until(lambda: server.health.nodes["p0"].is_up and server.health.nodes["d0"].is_up)
    answer = await bench.page(server, "/health")
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert answer.json["prefill_nodes_usable"] == 1
    await prefill.stop()
    await until(lambda: not server.health.nodes["p0"].is_up)
    answer = await bench.page(server, "/health")
    assert (answer.status, answer.json["decode_nodes_usable"]) == (503, 1)


async def test_health_is_good_while_deflection_alone_can_serve(bench, until) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0", chunk_mode="static")
    server = await bench.router(prefill, decode)
    await until(lambda: server.health.nodes["d0"].is_up)
    await prefill.stop()
    await until(lambda: not server.health.nodes["p0"].is_up)
    assert (await bench.page(server, "/health")).status == 200
    await decode.stop()
    await until(lambda: not server.health.nodes["d0"].is_up)
    assert (await bench.page(server, "/health")).status == 503


async def test_health_is_not_good_before_a_node_has_answered(bench) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    await prefill.stop()
    await decode.stop()
    server = await bench.router(prefill, decode)
    assert (await bench.page(server, "/health")).status == 503


async def test_models_are_the_union_of_the_decode_nodes(bench, until) -> None:
    one, two = await bench.node("d0"), await bench.node("d1")
    one.models, two.models = ["b", "a"], ["c", "b"]
    server = await bench.router(await bench.node("p0"), one, two)
    await until(lambda: not server.shell.models.may_exist("x"))
    answer = await bench.page(server, "/v1/models")
    assert [model["id"] for model in answer.json["data"]] == ["a", "b", "c"]
    assert answer.json["object"] == "list"


async def test_metrics_tell_of_requests_nodes_and_pools(bench, body) -> None:
    _, _, server = await bench.pair()
    await bench.ask(server, body)
    await bench.ask(server, b"{")
    answer = await bench.page(server, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    assert 'spillway_requests_total{route="prefill",outcome="finished"} 1' in lines
    assert 'spillway_bad_requests_total{status="400"} 1' in lines
    assert 'spillway_decisions_total{reason="static"} 1' in lines
    assert 'spillway_ttft_seconds_count{route="prefill"} 1' in lines
    assert "spillway_inflight 0" in lines
    assert 'spillway_node_usable{node="d0",role="decode"} 1' in lines
    assert 'spillway_node_decode_seqs{node="d0",role="decode"} 0' in lines


async def test_decisions_are_explained_newest_first(bench, deflect, body) -> None:
    _, _, server = await bench.pair(deflect())
    for name in ("one", "two", "three"):
        await bench.ask(server, body, headers=(f"x-request-id: {name}",))
    answer = await bench.page(server, "/debug/decisions?n=2")
    found = answer.json["decisions"]
    assert [one["request"]["request_id"] for one in found] == ["three", "two"]
    assert found[0]["decision"]["route"] == "deflected"
    assert found[0]["decision"]["reason"] == "faster_on_decode"
    assert found[0]["decision"]["estimate"]["queue_s"] == 0.25
    assert found[0]["policy"] == "always-deflect"
    by_id = await bench.page(server, "/debug/decisions?id=two")
    assert by_id.json["decisions"] == [found[1]]


async def test_every_candidate_of_a_decision_is_shown(bench, body) -> None:
    nodes = [await bench.node(name) for name in ("p0", "p1", "d0", "d1")]
    server = await bench.router(*nodes, policy="headroom")
    await bench.ask(server, {**body, "prompt": list(range(3000))})
    (record,) = (await bench.page(server, "/debug/decisions")).json["decisions"]
    assert record["request"]["prompt_tokens"] == 3000
    candidates = record["decision"]["candidates"]
    assert {one["verdict"] for one in candidates} >= {"chosen"}
    chosen = next(one for one in candidates if one["verdict"] == "chosen")
    assert set(chosen["estimate"]) >= {"queue_s", "execute_s", "transfer_s", "admission_s"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/debug/decisions?n=0", 400),
        ("/debug/decisions?n=many", 400),
        ("/debug/decisions?id=nobody", 404),
        ("/nothing", 404),
        ("/v1/completions", 405),
    ],
)
async def test_a_page_that_is_not_there_is_an_error(bench, path: str, status: int) -> None:
    _, _, server = await bench.pair()
    answer = await bench.page(server, path)
    assert (answer.status, answer.error["type"]) == (status, "invalid_request_error")


async def test_a_page_takes_get_only(bench) -> None:
    _, _, server = await bench.pair()
    answer = await bench.ask(server, {}, path="/health")
    assert (answer.status, answer.headers["allow"]) == (405, "GET")


async def test_no_page_for_clients_names_a_nodes_address(bench, body, until) -> None:
    prefill, decode, server = await bench.pair()

    async def leaky(node, got) -> None:
        got.writer.write(
            json_response(500, {"error": f"upstream http://127.0.0.1:{node.port}"}, "x-node: n")
        )

    prefill.on_post = leaky
    answer = await bench.ask(server, body)
    shown = json.dumps(answer.headers) + answer.body.decode()
    assert answer.status == 503
    assert str(prefill.port) not in shown
    assert str(decode.port) not in shown
