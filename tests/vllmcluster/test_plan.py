"""The command lines of real nodes, and what a router is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from spillway.core.errors import ConfigError
from spillway.core.types import ChunkMode, Role
from spillway.vllmcluster.plan import Ports, VllmPlan, profile_file
from spillway.wire.profile import load_profile_file

PORTS = Ports(http_port=8001, handshake_port=5601, report_port=8101)


@pytest.fixture
def plan(tmp_path: Path) -> VllmPlan:
    return VllmPlan(folder=tmp_path, python=Path("python"), prefill_count=2, decode_count=1)


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_each_role_has_its_side_of_the_transfer(plan: VllmPlan) -> None:
    assert plan.roles() == {"p0": Role.PREFILL, "p1": Role.PREFILL, "d0": Role.DECODE}
    for name, kv_role in (("p1", "kv_producer"), ("d0", "kv_consumer")):
        transfer = json.loads(option(plan.arguments(name, "m", PORTS), "--kv-transfer-config"))
        assert transfer["kv_role"] == kv_role
        assert transfer["kv_connector_extra_config"]["kv_lease_duration"] == plan.lease_s
    assert plan.environment(PORTS)["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "5601"


def test_the_plug_in_is_there_only_when_asked_for(plan: VllmPlan) -> None:
    assert "--scheduler-cls" not in plan.arguments("d0", "m", PORTS)
    arguments = replace(plan, plugin={"tbt_s": 0.03}).arguments("d0", "m", PORTS)
    settings = json.loads(option(arguments, "--additional-config"))["spillway"]
    assert (settings["tbt_s"], settings["node_id"], settings["report_port"]) == (0.03, "d0", 8101)
    assert option(arguments, "--scheduler-cls") == "spillway.engine.scheduler.make"
    mixed = replace(plan, plugin={}, stock=frozenset({"d0"}))
    assert "--scheduler-cls" in mixed.arguments("p0", "m", PORTS)
    assert "--scheduler-cls" not in mixed.arguments("d0", "m", PORTS)


def test_the_profile_that_plug_ins_and_routers_read_is_the_plans(plan: VllmPlan) -> None:
    plan.write_profile()
    written = load_profile_file(str(plan.profile_path))
    assert written == profile_file(plan)
    # keys and values of 4 layers, 2 heads of 64, in bfloat16
    assert written.kv_bytes_per_token == 2 * 4 * 2 * 64 * 2
    blocks = plan.kv_cache_bytes // (written.kv_bytes_per_token * 128)
    assert written.kv_capacity_tokens == 128 * (blocks - 1)
    measured = replace(plan, law=msgspec.structs.replace(written, name="measured"))
    measured.write_profile()
    assert load_profile_file(str(plan.profile_path)).name == "measured"


def test_nodes_share_the_cores_in_turn(plan: VllmPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {2, 5})
    assert [plan.core(name) for name in plan.roles()] == [2, 5, 2]


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (5, 4)])
def test_a_cluster_that_cannot_be_is_refused(plan: VllmPlan, counts: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="node"):
        replace(plan, prefill_count=counts[0], decode_count=counts[1])


def test_a_router_in_front_knows_names_reports_and_chunks(plan: VllmPlan) -> None:
    import asyncio

    from spillway.vllmcluster.cluster import VllmCluster, VllmNode
    from spillway.vllmcluster.routing import router_config

    for plugin, mode in (({}, ChunkMode.ENGINE), (None, ChunkMode.STATIC)):
        cluster = VllmCluster(replace(plan, plugin=plugin))
        cluster.plan.write_profile()
        for at, (name, role) in enumerate(plan.roles().items()):
            report_url = f"http://127.0.0.1:{9100 + at}" if plugin is not None else ""
            url = f"http://127.0.0.1:{9000 + at}"
            ended = asyncio.Event()
            cluster.nodes[name] = VllmNode(name, role, 1, url, report_url, Path("log"), ended)
        *_, decode = router_config(cluster, "headroom", urls={"d0": "http://h:1"}).build_nodes()
        assert (decode.spec.node_id, decode.url) == ("d0", "http://h:1")
        assert decode.report_url == ("http://127.0.0.1:9102" if plugin is not None else "")
        assert decode.spec.chunk_mode is mode
        assert decode.spec.chunk_tokens_max == plan.step_tokens_max
