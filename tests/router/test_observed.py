"""What an operator can see: forecasts against facts, drift, nodes, and a log line per request."""

from __future__ import annotations

import asyncio
import json

from builders import make_state
from fakenode import SSE_HEAD, chunk, event
from router.test_metrics import parsed
from spillway.core.decide import Decision, Reason, Route
from spillway.core.events import NodeReported
from spillway.router.metrics import METRICS


async def metrics_of(bench, server) -> dict[str, float]:
    return parsed((await bench.page(server, "/metrics")).body.decode())


async def test_every_reason_has_a_counter_from_the_start(bench) -> None:
    _, _, server = await bench.pair()
    values = await metrics_of(bench, server)
    for reason in Reason:
        assert values[f'spillway_decisions_total{{reason="{reason}"}}'] == 0


async def test_samples_have_the_labels_that_the_table_says(bench, body, deflect) -> None:
    _, _, server = await bench.pair(deflect(), gap_sample_every=1)
    await bench.ask(server, body)
    await bench.ask(server, b"{")
    for series in await metrics_of(bench, server):
        name, _, inside = series.partition("{")
        for suffix in ("_bucket", "_sum", "_count"):
            if name not in METRICS:
                name = name.removesuffix(suffix)
        labels = [pair.partition("=")[0] for pair in inside.rstrip("}").split(",") if pair]
        assert [label for label in labels if label != "le"] == list(METRICS[name].labels), series


async def test_a_forecast_is_held_against_what_came(bench, body, deflect) -> None:
    _, _, server = await bench.pair(deflect())  # predicts 0.25 s
    await bench.ask(server, body)
    values = await metrics_of(bench, server)
    realised_s = values['spillway_ttft_seconds_sum{route="deflected"}']
    assert values['spillway_predicted_ttft_seconds_sum{route="deflected"}'] == 0.25
    assert values['spillway_ttft_ratio_sum{route="deflected"}'] == realised_s / 0.25


async def test_gaps_of_sampled_streams_are_measured_and_late_ones_counted(
    bench, body, deflect
) -> None:
    _, decode, server = await bench.pair(deflect(), gap_sample_every=2)

    async def slow(node, got) -> None:
        got.writer.write(SSE_HEAD + chunk(event(0)))
        for number in range(1, 4):
            await asyncio.sleep(0.02)
            got.writer.write(chunk(event(number)))
        await asyncio.sleep(0.02)
        got.writer.write(b"0\r\n\r\n")

    decode.on_post = slow
    for _ in range(4):
        answer = await bench.ask(server, body, headers=["x-slo-tbt-ms: 5"])
        assert answer.body == b"".join(event(number) for number in range(4))
    values = await metrics_of(bench, server)
    assert values['spillway_stream_gap_seconds_count{route="deflected"}'] == 2 * 4
    assert values['spillway_stream_gaps_late_total{route="deflected"}'] == 2 * 4
    assert values['spillway_stream_gap_seconds_sum{route="deflected"}'] >= 2 * 0.08


async def test_each_request_and_each_change_of_a_node_is_one_line(
    bench, body, until, tmp_path
) -> None:
    path = tmp_path / "log.jsonl"
    prefill, _, server = await bench.pair(log_path=str(path))
    secret = "Bearer sk-very-secret"
    await bench.ask(server, body, headers=['x-request-id: a"b', f"authorization: {secret}"])
    await prefill.stop()
    await until(lambda: not server.health.nodes["p0"].is_up)
    await bench.ask(server, body)
    await prefill.start()
    await until(lambda: server.health.nodes["p0"].is_up)
    await server.close()
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["outcome"] for line in requests] == ["finished", "rejected"]
    first = requests[0]
    assert (first["request_id"], first["route"], first["node"]) == ('a"b', "prefill", "d0")
    assert 0 < first["ttft_s"] <= first["duration_s"]
    assert first["prompt_tokens"] > 0
    assert [line["event"] for line in lines if line["event"] != "request"] == [
        "node_lost",
        "node_back",
    ]
    assert "sk-very-secret" not in text
    assert body["prompt"] not in text


async def test_without_a_log_nothing_is_kept_for_it(bench, body) -> None:
    _, _, server = await bench.pair()
    await bench.ask(server, body)
    assert server.shell.log.file._waiting == []


async def test_who_is_held_back_shows_and_for_how_long_they_were(
    bench, body, deflect, until
) -> None:
    class Hold(deflect):
        """Holds everything until it is told to go on."""

        holds = True

        def decide(self, request, cluster):
            if self.holds and cluster.may_hold:
                return Decision(Route.HELD, Reason.WORTH_WAITING)
            return super().decide(request, cluster)

        def hold_key(self, request, cluster):
            return 0.0

        def feed_s(self, node):
            return 1.0

    policy = Hold()
    _, _, server = await bench.pair(policy)
    client = await bench.client(server)
    client.post(body)
    await until(lambda: server.shell.live)
    assert (await metrics_of(bench, server))["spillway_held"] == 1
    await asyncio.sleep(0.05)
    policy.holds = False
    assert (await client.answer()).complete
    values = await metrics_of(bench, server)
    assert values["spillway_held"] == 0
    assert values['spillway_decision_wait_seconds_count{route="deflected"}'] == 1
    assert values['spillway_decision_wait_seconds_sum{route="deflected"}'] >= 0.05


async def test_a_node_that_no_profile_describes_shows(bench) -> None:
    _, _, server = await bench.pair()
    name = 'spillway_node_drifting{node="d0",role="decode"}'
    assert (await metrics_of(bench, server))[name] == 0
    server.shell.tell(NodeReported(make_state("d0", gain_decode=4.9)))
    values = await metrics_of(bench, server)
    assert values[name] == 1
    assert values['spillway_node_drift_alarms_total{node="d0",role="decode"}'] == 1
