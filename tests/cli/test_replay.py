"""`spillway replay` on a log that a dispatcher wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import make_request
from cli_command import Command
from spillway.core.dispatcher import Dispatcher
from spillway.core.events import LogDecision, RequestArrived
from spillway.core.policies import build_policy
from spillway.router.decision_log import encode_line
from spillway.wire.config import load_config

CONFIG = """
nodes:
  prefill: [{url: "http://127.0.0.1:1"}]
  decode: [{url: "http://127.0.0.1:2"}, {url: "http://127.0.0.1:3"}]
policy: {name: POLICY}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(CONFIG.replace("POLICY", "round-robin"), encoding="utf-8")
    return path


@pytest.fixture
def log(config: Path, tmp_path: Path) -> Path:
    read = load_config(config)
    specs = [node.spec for node in read.build_nodes()]
    dispatcher = Dispatcher(build_policy("round-robin"), specs, record_views=True)
    lines = []
    for number in range(20):
        event = RequestArrived(make_request(f"r{number}"))
        for order in dispatcher.handle(event, 1.0 + number):
            if isinstance(order, LogDecision):
                lines.append(encode_line(order, "round-robin"))
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def test_the_same_policy_decides_the_same(spillway: Command, log: Path, config: Path) -> None:
    done = spillway("replay", log, "--config", config)
    assert (done.code, "20 decisions" in done.out, ": 0 come out" in done.out) == (0, True, True)


def test_another_policy_shows_what_it_would_change(
    spillway: Command, log: Path, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    done = spillway("replay", log, "--config", config, "--policy", "colocated", "--json", out)
    assert done.code == 0
    found = json.loads(out.read_text(encoding="utf-8"))
    assert (found["policy"], found["same"], found["changed"]) == ("colocated", 0, 20)
    assert sum(change["count"] for change in found["changes"]) == 20
    assert "(static) -> prefill p0+d0 (no_safe_decode_node)" in done.out
    assert "for instance r" in done.out


def test_a_router_that_was_configured_otherwise_is_noticed(
    spillway: Command, log: Path, config: Path
) -> None:
    config.write_text(CONFIG.replace("POLICY", "colocated"), encoding="utf-8")
    done = spillway("replay", log, "--config", config)
    assert done.code == 1
    assert "same configuration" in done.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{}\n", "line 21: no decision"),
        (b'{"logged":', "line 21: no decision"),
    ],
)
def test_a_line_that_is_none_is_named(
    spillway: Command, log: Path, config: Path, line: bytes, said: str
) -> None:
    log.write_bytes(log.read_bytes() + line)
    done = spillway("replay", log, "--config", config)
    assert (done.code, said in done.err) == (2, True)


def test_a_node_that_is_not_configured_is_named(spillway: Command, log: Path, config: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b'"node_id":"d1"', b'"node_id":"d9"'))
    done = spillway("replay", log, "--config", config)
    assert (done.code, "node 'd9' is not in" in done.err) == (2, True)


def test_replayed_decisions_are_set_beside_what_happened(
    spillway: Command, log: Path, config: Path, tmp_path: Path
) -> None:
    happened = tmp_path / "router.log"
    happened.write_text('{"event": "request", "request_id": "r3", "ttft_s": 0.125}\n')
    options = ("--config", config, "--policy", "least-loaded", "--happened", happened)
    done = spillway("replay", log, *options)
    assert done.code == 0
    assert "In the shadow of round-robin: least-loaded" in done.out
    assert "0.125" in done.out


def test_a_log_without_a_shadow_is_told_how_to_get_one(
    spillway: Command, log: Path, tmp_path: Path
) -> None:
    done = spillway("replay", log, "--shadow")
    assert (done.code, "serve --shadow" in done.err) == (2, True)
    done = spillway("replay", log, "--shadow", "--policy", "headroom")
    assert (done.code, "leave --policy out" in done.err) == (2, True)
    done = spillway("replay", log)
    assert (done.code, "--config is missing" in done.err) == (2, True)
