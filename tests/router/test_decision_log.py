"""Decisions are kept, written off the event loop, and made again from one line (INV-8)."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from builders import A100_8B, make_cluster, make_node, make_request
from spillway.core.decide import Decision, Reason, Route
from spillway.core.events import LogDecision
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.core.types import NodeView, Role
from spillway.router.decision_log import DecisionLog, LineEncoder, decode_line, encode_line


def logged(number: int) -> LogDecision:
    decision = Decision(Route.PREFILL, Reason.STATIC, "p0", "d0")
    return LogDecision(make_request(f"r{number}"), decision, float(number), None)


def test_the_last_decisions_are_kept_the_newest_first() -> None:
    log = DecisionLog("p", 3)
    for number in range(5):
        log.add(logged(number))
    assert [one.request.request_id for one in log.recent(10)] == ["r4", "r3", "r2"]
    assert [one.request.request_id for one in log.recent(1)] == ["r4"]
    assert log.recent(0) == []
    assert log.find("r0") == []
    assert [one.decided_at_s for one in log.find("r3")] == [3.0]


def test_a_line_says_all_that_the_view_does_whatever_was_said_before() -> None:
    encoder = LineEncoder("p")
    figures = [one.name for one in fields(NodeView) if one.type in ("int", "float")]
    for at, base_s in enumerate((0.25, 0.5, 0.25)):
        taught = replace(A100_8B, step_base_s=base_s)
        nodes = [
            make_node(node_id, role, profile=taught, tbt_margin_frac=0.5 + base_s)
            for node_id, role in (("p0", Role.PREFILL), ("d0", Role.DECODE))
        ]
        for number, (node, name) in enumerate((n, f) for n in nodes for f in figures):
            setattr(node, name, 1000 * at + number)
        line = decode_line(encoder.encode(logged(at)._replace(cluster=make_cluster(*nodes))))
        assert line.cluster is not None
        assert [(one.node_id, one.role) for one in line.cluster.nodes] == [
            ("p0", Role.PREFILL),
            ("d0", Role.DECODE),
        ]
        for one, node in zip(line.cluster.nodes, nodes, strict=True):
            assert [getattr(one, name) for name in figures] == [
                getattr(node, name) for name in figures
            ]
            assert (one.step_base_s, one.tbt_margin_frac) == (base_s, 0.5 + base_s)
            assert (one.reporting, one.usable, one.token_s) == (True, True, A100_8B.token_s)


def test_without_a_view_nothing_can_be_replayed() -> None:
    line = decode_line(encode_line(logged(0), "p"))
    with pytest.raises(ValueError, match="without the view"):
        line.replay(build_policy("headroom"), {})


@pytest.mark.parametrize("name", POLICY_NAMES)
async def test_a_logged_decision_replays_to_the_same_decision(
    bench, body, tmp_path, until, name: str
) -> None:
    path = tmp_path / "decisions.jsonl"
    nodes = [await bench.node(node_id) for node_id in ("p0", "p1", "d0", "d1")]
    server = await bench.router(*nodes, policy=name, decision_log_path=str(path))
    clients = [await bench.client(server) for _ in range(6)]
    for number, client in enumerate(clients):
        client.post({**body, "prompt": list(range(1, 4000 * number + 9))})
    for client in clients:
        assert (await client.answer()).status == 200
    await server.shell.decisions.file.finish()
    lines = [decode_line(line) for line in path.read_bytes().splitlines()]
    assert len(lines) == 6
    specs = {node.spec.node_id: node.spec for node in nodes}
    for line in lines:
        assert line.replay(build_policy(name), specs) == line.logged.decision
