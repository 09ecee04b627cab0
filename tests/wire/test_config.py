"""The router's configuration: what a file and flags become, and what bad input is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from spillway.core.dispatcher import DispatchLimits
from spillway.core.errors import ConfigError
from spillway.core.headroom import Headroom
from spillway.core.shadow import Shadowed
from spillway.core.types import ChunkMode, NodeSpec, Role, Slo
from spillway.router.settings import RouterSettings
from spillway.wire.config import ClusterConfig, LimitsConfig, config_from_flags, load_config
from spillway.wire.profile import (
    DEFAULT_PROFILE,
    load_profile,
    load_profile_file,
    write_profile_file,
)
from spillway.wire.routerconfig import RouterConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "cluster.yaml"
NODES = """\
nodes:
  prefill:
    - url: http://a:8000
  decode:
    - url: http://b:8000
"""


def test_the_example_loads_and_says_what_its_comments_say() -> None:
    config = load_config(EXAMPLE)
    nodes = config.build_nodes()
    assert [node.spec.node_id for node in nodes] == ["prefill-a", "p1", "d0", "d1"]
    assert [node.spec.role for node in nodes] == [Role.PREFILL] * 2 + [Role.DECODE] * 2
    assert nodes[3].url == "http://10.0.0.22:8000"
    assert nodes[2].spec.profile == load_profile("llama-3.1-8b-a100")
    assert nodes[2].spec.chunk_mode is ChunkMode.ENGINE
    assert nodes[3].spec.profile == load_profile("llama-3.1-8b-h100")
    assert nodes[3].spec.chunk_mode is ChunkMode.STATIC
    assert nodes[3].spec.chunk_tokens_max == 256
    assert nodes[0].spec.link_bytes_per_s == 25e9
    assert config.slos() == {"default": Slo(1.0, 0.06), "batch": Slo(30.0, 0.5)}


def test_what_the_example_calls_a_default_is_one(tmp_path: Path) -> None:
    example, least = load_config(EXAMPLE), load_config(_file(tmp_path, NODES))
    assert least.router.given() == {}
    assert RouterSettings(**example.router.given()) == RouterSettings()
    assert least.limits.build() == DispatchLimits()
    assert example.defaults == least.defaults
    assert example.policy == least.policy
    assert example.limits == least.limits
    assert example.classes["default"] == least.classes.get("default", example.classes["default"])
    assert least.slos() == {"default": Slo(1.0, 0.06)}


def test_every_router_key_is_one_of_the_routers_settings() -> None:
    settings = {field.name for field in dataclasses.fields(RouterSettings)}
    assert set(RouterConfig.__struct_fields__) <= settings
    config = config_from_flags(["http://a:1"], ["http://b:1"], router={"port": 0, "drain_s": 9})
    assert RouterSettings(**config.router.given()) == RouterSettings(port=0, drain_s=9)


def test_a_node_that_says_nothing_is_as_core_defines_it() -> None:
    for spec, *_ in config_from_flags(["http://a:1"], ["http://b:1"]).build_nodes():
        assert spec == NodeSpec(
            node_id=spec.node_id,
            role=spec.role,
            profile=load_profile(DEFAULT_PROFILE),
            kv_capacity_tokens=spec.kv_capacity_tokens,
        )


def test_flags_and_file_give_the_same_nodes(tmp_path: Path) -> None:
    from_file = load_config(_file(tmp_path, NODES))
    from_flags = config_from_flags(["http://a:8000/"], ["http://B:8000"])
    assert from_flags.build_nodes() == from_file.build_nodes()
    assert from_flags.slos() == from_file.slos()
    assert from_flags.policy == from_file.policy


def test_kv_room_is_the_nodes_then_the_default_then_the_profiles(tmp_path: Path) -> None:
    text = NODES + "    - {url: 'http://c:1', kv_capacity_tokens: 7}\n"
    profile_tokens = load_profile_file("llama-3.1-8b-a100").kv_capacity_tokens
    assert profile_tokens > 0
    assert _kv_tokens(load_config(_file(tmp_path, text))) == [profile_tokens, profile_tokens, 7]
    text += "defaults: {kv_capacity_tokens: 0}\n"
    assert _kv_tokens(load_config(_file(tmp_path, text))) == [0, 0, 7]


def test_a_profile_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    write_profile_file(tmp_path / "mine.json", load_profile_file("qwen3-8b-h100"))
    config = load_config(_file(tmp_path, NODES + "defaults: {profile: mine.json}\n"))
    assert {node.spec.profile.name for node in config.build_nodes()} == {"qwen3-8b-h100"}


def test_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    config = load_config(_file(tmp_path, NODES + "defaults: {link_bytes_per_s: 12e9}\n"))
    assert {node.spec.link_bytes_per_s for node in config.build_nodes()} == {12e9}


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "nodes.prefill: is empty"),
        ("[]", 1, "expected a table of keys, got a list"),
        ("nodes: {prefill: []}", 1, "nodes.prefill: is empty"),
        ("nodes: {prefill: [], decode: []}", 1, "nodes.prefill: is empty; at least one prefill"),
        (NODES + "polcy: {}", 6, "polcy: unknown key; did you mean 'policy'? allowed: nodes,"),
        (
            NODES.replace("- url: http://b:8000", "- ur: http://b:8000"),
            5,
            "nodes.decode[0].ur: unknown key; did you mean 'url'? allowed: url, name, profile,",
        ),
        (
            NODES.replace("- url: http://b:8000", "- name: b"),
            5,
            "nodes.decode[0].url: is missing and has no default",
        ),
        (
            NODES + "      chunk_mode: statc",
            6,
            "nodes.decode[0].chunk_mode: is 'statc'; did you mean 'static'? "
            "allowed: engine, static, unknown",
        ),
        (
            NODES + "      chunk_tokens_max: 0",
            6,
            "nodes.decode[0].chunk_tokens_max: is 0; it must be a whole number >= 1",
        ),
        (
            NODES + "      step_tokens_max: 8192",
            6,
            "nodes.decode[0].step_tokens_max: unknown key; did you mean 'chunk_tokens_max'?",
        ),
        (
            NODES + "    - url: http://b:8000",
            6,
            "nodes.decode[1].url: 'http://b:8000' is already that of nodes.decode[0]",
        ),
        (
            NODES + "    - {url: 'http://c:1', report_url: 'http://c:1'}",
            6,
            "nodes.decode[1].report_url: 'http://c:1' is the node's own url; leave it out",
        ),
        (
            NODES + "    - {url: 'http://c:1', name: p0}",
            6,
            "nodes.decode[1].name: 'p0' is already that of nodes.prefill[0]",
        ),
        (
            NODES + "      profile: llama",
            6,
            "nodes.decode[0].profile: profile 'llama': not a built-in profile and not a file; "
            "allowed: deepseek-v2-lite-a100-derived,",
        ),
        (
            NODES + "defaults:\n  profile: gone.json",
            7,
            "gone.json: cannot read the profile: No such file or directory",
        ),
        (
            NODES + "classes:\n  default: {}\n  batch:\n    tbt_s: 0",
            9,
            "classes.batch.tbt_s: is 0; it must be a number > 0.0",
        ),
        (
            NODES + "classes:\n  batch: {ttft: 1}",
            7,
            "classes.batch.ttft: unknown key; did you mean 'ttft_s'? allowed: ttft_s, tbt_s",
        ),
        (
            NODES + "limits:\n  retries_max: two",
            7,
            "limits.retries_max: expected a whole number, got text",
        ),
        (NODES + "router: {port: 70000}", 6, "router.port: is 70000; it must be a whole number <="),
        (NODES + "defaults: {link_base_s: .inf}", 6, "defaults.link_base_s: must be a finite"),
        (NODES + "policy: {name: headrom}", 6, "policy: "),
        (NODES + "router: {}\nrouter: {}", 7, "not valid YAML: the key 'router' is given twice"),
        (NODES + "router: {", 6, "not valid YAML: "),
    ],
)
def test_a_bad_file_is_one_line_with_its_line_and_key(
    tmp_path: Path, text: str, line: int, said: str
) -> None:
    path = _file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    told = str(caught.value)
    assert told.startswith(f"{path}:{line}: ")
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("a:8000", "write http://HOST:PORT"),
        ("http://a", "the port is missing"),
        ("http://a:x", "Port could not be cast"),
        ("http://a:8000/v1", "nothing may follow the port"),
        ("ftp://a:8000", "write http://HOST:PORT"),
        ("http://:8000", "write http://HOST:PORT"),
    ],
)
def test_a_bad_url_is_told_its_flag_and_the_remedy(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_flags(["http://ok:1"], [url])
    told = str(caught.value)
    assert told.startswith(f"--decode: is {url!r}; ")
    assert said in told
    assert "\n" not in told


def test_flags_are_named_as_the_operator_typed_them() -> None:
    one = ["http://a:1"]
    with pytest.raises(ConfigError, match=r"^--prefill: is empty"):
        config_from_flags([], one)
    with pytest.raises(ConfigError, match=r"^--profile: profile 'x': not a built-in"):
        config_from_flags(one, ["http://b:1"], profile="x")
    with pytest.raises(ConfigError, match=r"^--slo-tbt-s: is -1; it must be a number > 0"):
        config_from_flags(one, ["http://b:1"], slo_tbt_s=-1)
    with pytest.raises(ConfigError, match=r"^--policy: "):
        config_from_flags(one, ["http://b:1"], policy="x")
    with pytest.raises(ConfigError, match=r"^--drain-s: is 0; it must be a number > 0"):
        config_from_flags(one, ["http://b:1"], router={"drain_s": 0})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot read the configuration: No such"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration: Is a directory"):
        load_config(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"router: \xe4")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 text, at byte 8"):
        load_config(path)


def _file(folder: Path, text: str) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def _kv_tokens(config: ClusterConfig) -> list[int]:
    return [node.spec.kv_capacity_tokens for node in config.build_nodes()]


def test_a_shadow_is_named_beside_the_policy_that_routes(tmp_path: Path) -> None:
    shadow = "shadow: {name: headroom, options: {hold: false, margin_max: 1.5}}\n"
    config = load_config(_file(tmp_path, NODES + "policy: {name: least-loaded}\n" + shadow))
    assert config.shadow is not None
    assert config.shadow.text() == "headroom:hold=off,margin_max=1.5"
    policy = config.build_routing()
    assert isinstance(policy, Shadowed)
    assert (policy.name, policy.shadow_name) == ("least-loaded", config.shadow.text())
    assert policy.shadow == Headroom(hold=False, margin_max=1.5)
    assert load_config(_file(tmp_path, NODES)).build_routing() == Headroom()
    flags = config_from_flags(["http://a:1"], ["http://b:1"], shadow="headroom:hold=off")
    assert flags.shadow is not None
    assert flags.shadow.text() == "headroom:hold=off"


def test_a_shadow_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r":6: shadow: policy 'headrom' is not known"):
        load_config(_file(tmp_path, NODES + "shadow: {name: headrom}"))
    with pytest.raises(ConfigError, match=r"^--shadow: policy 'x' is not known"):
        config_from_flags(["http://a:1"], ["http://b:1"], shadow="x")


@pytest.mark.parametrize("profile", ["a" * 5000, "a" * 5000 + ".json", "a\0.json", "a\0"])
def test_a_profile_name_that_no_file_can_have_is_refused(tmp_path: Path, profile: str) -> None:
    path = tmp_path / "cluster.yaml"
    content = {"nodes": {"decode": [{"url": "http://b:2"}], "prefill": [{"url": "http://a:1"}]}}
    path.write_text(json.dumps({**content, "defaults": {"profile": profile}}))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_every_limit_of_decisions_can_be_set(tmp_path: Path) -> None:
    given = {"report_age_max_s": 2.0, "retries_max": 1, "calibrated": False}
    given |= {"held_max": 7, "hold_s_max": 0.5, "reject_late": True}
    path = tmp_path / "cluster.yaml"
    path.write_text(NODES + f"limits: {json.dumps(given)}\n")
    assert load_config(path).limits.build() == DispatchLimits(**given)
    assert set(given) == {field.name for field in dataclasses.fields(DispatchLimits)}
    assert LimitsConfig().build() == DispatchLimits()
