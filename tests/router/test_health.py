"""When a node is lost, when it is back, and what it is known to serve."""

from __future__ import annotations

import asyncio


def view_of(server, node_id: str):
    return server.shell.dispatcher.ledger.nodes[node_id].view


async def test_a_node_is_lost_after_several_failures_and_back_after_one_success(
    bench, until
) -> None:
    prefill, _, server = await bench.pair(health_failures_max=3)
    await until(lambda: server.health.nodes["p0"].is_up)
    prefill.health = 500
    await until(lambda: not view_of(server, "p0").usable)
    assert server.shell.metrics.upstream_errors["p0", "health_http_500"] == 3
    assert not server.health.nodes["p0"].is_up
    prefill.health = 200
    await until(lambda: view_of(server, "p0").usable)
    assert server.health.nodes["p0"].is_up


async def test_a_single_failure_changes_nothing(bench, until) -> None:
    prefill, _, server = await bench.pair(health_failures_max=3)
    prefill.health = 500
    await until(lambda: server.shell.metrics.upstream_errors["p0", "health_http_500"] >= 1)
    prefill.health = 200
    await until(lambda: server.health.nodes["p0"].is_up)
    assert view_of(server, "p0").usable


async def test_a_node_that_refuses_connections_is_lost_at_once(bench, until) -> None:
    prefill, _, server = await bench.pair(health_failures_max=1000)
    await until(lambda: server.health.nodes["p0"].is_up)
    await prefill.stop()
    await until(lambda: not view_of(server, "p0").usable)
    await prefill.start()
    await until(lambda: view_of(server, "p0").usable)


async def test_no_answer_in_time_is_a_failure(bench, until) -> None:
    async def never(node, got) -> None:
        await asyncio.sleep(60)

    prefill, _, server = await bench.pair(health_timeout_s=0.01, health_failures_max=2)
    prefill._answer_health = never
    await until(lambda: not view_of(server, "p0").usable)
    assert server.shell.metrics.upstream_errors["p0", "health_silent"] >= 2


async def test_questions_carry_the_engines_key(bench, until) -> None:
    _, decode, server = await bench.pair(engine_api_key="s3cret")
    await until(lambda: not server.shell.models.may_exist("other"))
    asked = {got.target.partition("?")[0]: got.headers for got in decode.gets}
    assert set(asked) == {"/health", "/v1/models", "/spillway/reports", "/server_info"}
    assert {head["authorization"] for head in asked.values()} == {"Bearer s3cret"}


async def test_models_are_asked_of_decode_nodes_again_and_again(bench, until) -> None:
    prefill, decode, server = await bench.pair(models_interval_s=0.01)
    await until(lambda: server.shell.models.may_exist("new") is False)
    decode.models = ["new"]
    await until(lambda: not server.shell.models.may_exist("m"))
    assert server.shell.models.may_exist("new")
    assert all(got.target != "/v1/models" for got in prefill.gets)


async def test_a_model_list_that_is_none_makes_no_model_unknown(bench, until) -> None:
    async def nonsense(node, got) -> None:
        got.writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]")

    _, decode, server = await bench.pair()
    decode._answer_models = nonsense
    await until(lambda: server.shell.metrics.upstream_errors["d0", "models"] >= 2)
    assert server.shell.models.may_exist("anything")
