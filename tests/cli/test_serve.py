"""`spillway serve`: from flags or a file to one configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from cli_command import Command
from spillway.cli.serve import NodeFlags, _say_who_is_silent, build_config
from spillway.core.errors import ConfigError
from spillway.core.types import ChunkMode, Role, Slo

if TYPE_CHECKING:
    from spillway.router.app import Server

PREFILL, DECODE = ["http://127.0.0.1:1001"], ["http://127.0.0.1:1002", "http://127.0.0.1:1003"]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cluster.yaml"


def flags(**changes: Any) -> NodeFlags:
    return NodeFlags(**({"prefill": PREFILL, "decode": DECODE} | changes))


def test_flags_give_nodes_policy_and_targets() -> None:
    nodes = flags(slo_ttft_s=2.0, slo_tbt_s=0.1, profile="qwen3-8b-h100")
    config = build_config(None, nodes, "threshold", {"port": 9000, "host": None})
    assert [(node.spec.role, node.url) for node in config.build_nodes()] == [
        (Role.PREFILL, PREFILL[0]),
        (Role.DECODE, DECODE[0]),
        (Role.DECODE, DECODE[1]),
    ]
    assert config.policy.name == "threshold"
    assert config.slos()["default"] == Slo(2.0, 0.1)
    assert config.router.given() == {"port": 9000}
    assert config.defaults.profile == "qwen3-8b-h100"


def test_nodes_report_unless_a_chunk_size_is_said() -> None:
    plain = build_config(None, flags(), None, {})
    stock = build_config(None, flags(decode_chunk_tokens=512), None, {})
    assert plain.build_nodes()[1].spec.chunk_mode is ChunkMode.ENGINE
    spec = stock.build_nodes()[1].spec
    assert (spec.chunk_mode, spec.chunk_tokens_max) == (ChunkMode.STATIC, 512)


def test_kv_room_and_margin_reach_the_nodes() -> None:
    config = build_config(None, flags(kv_capacity_tokens=123, tbt_margin=0.7), None, {})
    spec = config.build_nodes()[1].spec
    assert (spec.kv_capacity_tokens, spec.tbt_margin_frac) == (123, 0.7)


def test_a_file_is_taken_with_policy_and_place_from_flags() -> None:
    config = build_config(EXAMPLE, NodeFlags(), "least-loaded", {"port": 1, "host": None})
    assert len(config.nodes.decode) == 2
    assert config.policy.name == "least-loaded"
    assert config.router.given()["port"] == 1


def test_a_shadow_may_be_named_beside_flags_or_a_file() -> None:
    for file, nodes in ((None, flags()), (EXAMPLE, NodeFlags())):
        config = build_config(file, nodes, "least-loaded", {}, shadow="headroom:hold=off")
        assert config.build_routing().name == "least-loaded"
        assert config.shadow is not None
        assert config.shadow.text() == "headroom:hold=off"
        with pytest.raises(ConfigError, match="'headrom' is not known"):
            build_config(file, nodes, None, {}, shadow="headrom")


@pytest.mark.parametrize("name", NodeFlags._fields)
def test_what_a_file_says_cannot_be_said_by_flags_too(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}: with --config"):
        build_config(EXAMPLE, NodeFlags(**{name: 1}), None, {})  # type: ignore[arg-type]


def test_no_engines_is_an_error_that_helps(spillway: Command) -> None:
    for given in ((), ("--prefill", PREFILL[0]), ("--decode", DECODE[0])):
        done = spillway("serve", *given)
        assert done.code == 2
        assert "which engines?" in done.err
        assert [f"--{role}" for role in ("prefill", "decode") if f"--{role}" not in given] == [
            word for word in done.err.split(" URL missing")[0].split() if word.startswith("--")
        ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--policy", "nope"), "--policy: policy 'nope'"),
        (("--profile", "nope"), "--profile"),
        (("--tbt-margin", "1.5"), "--tbt-margin"),
        (("--slo-tbt-s", "-1"), "--slo-tbt-s"),
        (("--port", "70000"), "--port"),
        (("--decode", "10.0.0.1:8000"), "--decode"),
    ],
)
def test_a_bad_flag_is_one_line(spillway: Command, given: tuple[str, ...], said: str) -> None:
    done = spillway("serve", "--prefill", PREFILL[0], "--decode", DECODE[0], *given)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_nodes_that_have_not_answered_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    seen = {"p0": SimpleNamespace(is_up=True), "d0": SimpleNamespace(is_up=False)}
    fleet = SimpleNamespace(nodes=dict.fromkeys(seen), health=SimpleNamespace(nodes=seen))
    server = cast("Server", SimpleNamespace(fleet=fleet))
    _say_who_is_silent(server)
    assert capsys.readouterr().err.startswith("no answer yet from d0; spillway check")
    seen["d0"].is_up = True
    _say_who_is_silent(server)
    assert capsys.readouterr().err == ""
