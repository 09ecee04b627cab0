"""Shadow mode on sockets: one policy routes, another one's decisions are counted and logged."""

from __future__ import annotations

from spillway.core.policies import build_policy
from spillway.core.shadow import with_shadow
from spillway.router.app import serve_config
from spillway.router.decision_log import decode_line
from spillway.wire.config import load_config

CONFIG = """\
nodes:
  prefill: [{{url: "{prefill}"}}]
  decode: [{{url: "{decode}"}}]
router: {{port: 0, drain_s: 0.05, decision_log_path: {log}, log_path: {requests}}}
policy: {{name: least-loaded}}
shadow: {{name: colocated, options: {{chunk_tokens: 256}}}}
"""


async def test_every_prompt_goes_the_static_way_and_the_shadow_is_counted(
    bench, deflect, body
) -> None:
    policy = with_shadow(build_policy("round-robin"), deflect(), "always-deflect")
    prefill, decode, server = await bench.pair(policy)
    answers = [await bench.ask(server, body) for _ in range(3)]
    assert [answer.headers["x-spillway-route"] for answer in answers] == ["prefill"] * 3
    assert (len(prefill.posts), len(decode.posts)) == (3, 3)
    page = (await bench.page(server, "/metrics")).body.decode().splitlines()
    assert 'spillway_decisions_total{reason="static"} 3' in page
    assert 'spillway_decisions_total{reason="faster_on_decode"} 0' in page
    shadow = 'spillway_shadow_decisions_total{route="deflected",reason="faster_on_decode"} 3'
    assert shadow in page
    assert 'spillway_shadow_predicted_ttft_seconds_sum{route="deflected"} 0.75' in page
    shown = (await bench.page(server, "/debug/decisions?n=1")).json["decisions"][0]
    assert (shown["decision"]["route"], shown["shadow"]["policy"]) == ("prefill", "always-deflect")
    assert shown["shadow"]["decision"]["decode_node_id"] == "d0"


async def test_a_shadow_that_fails_fails_alone(bench, body) -> None:
    class Failing:
        name = "failing"

        def decide(self, request, cluster):
            raise ZeroDivisionError

    prefill, _, server = await bench.pair(with_shadow(build_policy("least-loaded"), Failing()))
    assert (await bench.ask(server, body)).status == 200
    assert len(prefill.posts) == 1
    page = (await bench.page(server, "/metrics")).body.decode().splitlines()
    assert 'spillway_shadow_decisions_total{route="prefill",reason="policy_failed"} 1' in page
    assert "spillway_policy_failures_total 0" in page


async def test_without_a_shadow_nothing_of_it_is_shown(bench, body) -> None:
    _, _, server = await bench.pair()
    assert (await bench.ask(server, body)).status == 200
    page = (await bench.page(server, "/metrics")).body.decode()
    assert "spillway_shadow_decisions_total{" not in page
    assert "spillway_shadow_predicted_ttft_seconds_bucket" not in page
    shown = (await bench.page(server, "/debug/decisions")).json["decisions"][0]
    assert shown["shadow"] is None


async def test_a_configuration_names_both_and_the_log_holds_both(bench, body, tmp_path) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    path, log = tmp_path / "cluster.yaml", tmp_path / "decisions.jsonl"
    text = CONFIG.format(
        prefill=prefill.url, decode=decode.url, log=log, requests=tmp_path / "requests.log"
    )
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    server = await serve_config(config, path)
    bench.servers.append(server)
    assert (await bench.ask(server, body)).status == 200
    await server.shell.decisions.file.finish()
    line = decode_line(log.read_bytes())
    assert (line.logged.policy, line.logged.decision.route) == ("least-loaded", "prefill")
    assert line.logged.shadow is not None
    assert line.logged.shadow.policy == "colocated:chunk_tokens=256"
    specs = {node.spec.node_id: node.spec for node in config.build_nodes()}
    assert config.shadow is not None
    assert line.replay(config.policy.build(), specs) == line.logged.decision
    assert line.replay(config.shadow.build(), specs) == line.logged.shadow.decision
