"""Pods as nodes: role, port, readiness, and a router that follows them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import yaml

from fakekube import FakeKube, pod
from fakenode import FakeNode
from spillway.cli.check import _checked
from spillway.core.errors import ConfigError
from spillway.core.stock import ExpectedBatch
from spillway.core.types import Role
from spillway.router.app import serve_config
from spillway.router.kubenodes import PodNodes, beside
from spillway.wire.codec import convert, in_file
from spillway.wire.config import ClusterConfig
from spillway.wire.discoveryconfig import KubernetesConfig
from spillway.wire.kubeapi import Pod, read_list


def pods_of(*pods: dict) -> dict[str, Pod]:
    page = read_list(msgspec.json.encode({"metadata": {}, "items": pods}))
    return {one.metadata.name: one for one in page.items}


def reader(**keys: str) -> PodNodes:
    return PodNodes(ClusterConfig(), KubernetesConfig(selector="app=vllm", **keys))


def urls(nodes: PodNodes, *pods: dict) -> dict[str, str]:
    return {node.spec.node_id: node.url for node in nodes.read(pods_of(*pods)).nodes}


# --- what a pod is ---------------------------------------------------------------------------


def test_role_and_ports_come_from_labels_annotations_and_names() -> None:
    ports = [
        {"containerPort": 1, "name": "metrics"},
        {"containerPort": 8000, "name": "http"},
        {"containerPort": 8090, "name": "spillway-report"},
    ]
    annotated = {"spillway/port": "9000", "spillway/report-port": "9090"}
    found = reader().read(
        pods_of(
            pod("a", "decode", "10.0.0.1", ports=ports),
            pod("b", "prefill", "fd00::2", ports=ports, annotations=annotated),
            pod("c", "decode", "10.0.0.3"),
        )
    )
    assert [(n.spec.node_id, n.spec.role, n.url, n.report_url) for n in found.nodes] == [
        ("a", Role.DECODE, "http://10.0.0.1:8000", "http://10.0.0.1:8090"),
        ("b", Role.PREFILL, "http://[fd00::2]:9000", "http://[fd00::2]:9090"),
        ("c", Role.DECODE, "http://10.0.0.3:8000", ""),
    ]
    assert (found.unready, found.faults) == (frozenset(), {})


def test_label_and_port_names_can_be_others() -> None:
    nodes = reader(role_label="llm-d.ai/role", port_name="api")
    one = pod(
        "a", "", labels={"llm-d.ai/role": "decode"}, ports=[{"containerPort": 7, "name": "api"}]
    )
    assert urls(nodes, one) == {"a": "http://127.0.0.1:7"}
    assert nodes.selector == "app=vllm,llm-d.ai/role in (prefill,decode)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": None}, "pod bad: which port.*'http'.*spillway/port"),
        ({"annotations": {"spillway/port": "http"}}, "pod bad: spillway/port is 'http'; no port"),
        ({"annotations": {"spillway/port": "0"}}, "no port"),
        ({"annotations": {"spillway/port": "65536"}}, "no port"),
        ({"annotations": {"spillway/report-port": "-1"}}, "spillway/report-port"),
        ({"labels": {"spillway/role": "both"}}, "spillway/role is 'both'; write prefill or decode"),
    ],
)
def test_a_pod_that_cannot_be_a_node_keeps_no_other_out(changes: dict, said: str) -> None:
    found = reader().read(pods_of(pod("good", "decode"), pod("bad", "decode", **changes)))
    assert [node.spec.node_id for node in found.nodes] == ["good"]
    assert re.search(said, found.faults["bad"])


def test_a_pod_joins_when_it_is_first_ready_and_rests_when_it_is_not() -> None:
    nodes = reader()
    keeps = pod("keeps", "decode")
    assert urls(nodes, keeps, pod("a", "decode", is_ready=False)) == {
        "keeps": "http://127.0.0.1:8000"
    }
    assert "a" in urls(nodes, keeps, pod("a", "decode"))
    found = nodes.read(pods_of(keeps, pod("a", "decode", is_ready=False)))
    assert (len(found.nodes), found.unready) == (2, {"a"})
    again = pod("a", "decode", is_ready=False, uid="another")
    assert "a" not in urls(nodes, keeps, again), "of the same name, but never ready"


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
        {"status": {"phase": "Succeeded"}},
        {"status": {"phase": "Failed"}},
        {"status": {"podIP": ""}},
    ],
)
def test_a_pod_that_ends_is_no_node(change: dict) -> None:
    one = pod("a", "decode")
    for key, values in change.items():
        one[key] |= values
    assert "a" not in urls(reader(), pod("keeps", "decode"), one)


def test_the_last_decode_nodes_stay_until_there_are_others() -> None:
    nodes = reader()
    urls(nodes, pod("d0", "decode"), pod("p0", "prefill"))
    assert set(urls(nodes, pod("p1", "prefill"))) == {"p1", "d0"}
    assert set(urls(nodes, pod("p1", "prefill"), pod("d1", "decode"))) == {"p1", "d1"}


def test_what_is_listed_wins_over_what_is_found() -> None:
    listed = reader().read(pods_of(pod("a", "decode", "10.0.0.1"))).nodes
    found = reader().read(
        pods_of(pod("a", "decode", "10.0.0.9"), pod("b", "decode", "10.0.0.1"), pod("c", "prefill"))
    )
    assert [node.spec.node_id for node in beside(listed, found.nodes)] == ["a", "c"]


# --- a router that follows pods --------------------------------------------------------------


class Cluster:
    """An API server, engines behind its pods, and the configuration that leads there."""

    def __init__(self, bench, folder: Path) -> None:
        self.bench = bench
        self.kube = FakeKube()
        self.path = folder / "kubeconfig"

    async def start(self) -> Cluster:
        await self.kube.start()
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "namespace": "llm"}}],
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.kube.port}"}}
            ],
        }
        self.path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return self

    async def pod(self, name: str, **changes) -> FakeNode:
        """Start an engine and the pod around it."""
        node = await self.bench.node(name)
        self.kube.put(pod(name, node.role.value, port=node.port, **changes))
        return node

    def config(self, **keys: object) -> ClusterConfig:
        kubernetes = {
            "selector": "app=vllm",
            "kubeconfig": str(self.path),
            "start_wait_s": 5,
        } | keys
        raw = {
            "discovery": {"kubernetes": kubernetes, "interval_s": 0.02},
            "router": {"port": 0, "health_interval_s": 0.02, "drain_s": 0.05},
            "policy": {"name": "round-robin"},
        }
        return convert(raw, ClusterConfig, in_file("test"))

    async def router(self, **keys: object):
        server = await serve_config(self.config(**keys))
        self.bench.servers.append(server)
        return server


@pytest.fixture
async def cluster(bench, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = await Cluster(bench, tmp_path).start()
    yield cluster
    await cluster.kube.stop()


def up(server) -> set[str]:
    return {name for name, node in server.health.nodes.items() if node.is_up}


async def test_pods_join_rest_return_and_leave(cluster: Cluster, bench, body, until) -> None:
    await cluster.pod("p0")
    one = await cluster.pod("d0")
    server = await cluster.router()
    await until(lambda: up(server) == {"p0", "d0"})
    assert (await bench.ask(server, body)).status == 200

    two = await cluster.pod("d1")
    await until(lambda: "d1" in up(server))
    cluster.kube.ready("d0", False)
    await until(lambda: "d0" not in up(server))
    assert server.health.nodes["d0"].is_draining
    for _ in range(3):
        assert (await bench.ask(server, body)).status == 200
    assert (len(one.posts), len(two.posts)) == (1, 3)

    cluster.kube.ready("d0", True)
    await until(lambda: "d0" in up(server))
    cluster.kube.end("d1")
    await until(lambda: set(server.health.nodes) == {"p0", "d0"})
    for _ in range(2):
        assert (await bench.ask(server, body)).status == 200
    assert (len(one.posts), len(two.posts)) == (3, 3)


async def test_a_deleted_pod_ends_its_streams_first(cluster: Cluster, bench, body, until) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0")
    slow = await cluster.pod("d1")
    going = asyncio.Event()
    usual = slow.on_post

    async def wait_first(node, got) -> None:
        await going.wait()
        await usual(node, got)

    slow.on_post = wait_first
    server = await cluster.router()
    await until(lambda: up(server) == {"p0", "d0", "d1"})
    asked = [asyncio.ensure_future(bench.ask(server, body)) for _ in range(2)]
    await until(lambda: slow.posts)
    cluster.kube.delete("d1")
    await until(lambda: "d1" in server.fleet.leaving)
    going.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200, 200]
    await until(lambda: "d1" not in server.health.nodes)


async def test_an_operators_drain_outlasts_readiness(cluster: Cluster, until) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0")
    await cluster.pod("d1")
    server = await cluster.router()
    await until(lambda: len(up(server)) == 3)
    server.fleet.drain("d0")
    cluster.kube.ready("d0", False)
    await until(lambda: len(server.health.nodes["d0"].drained_for) == 2)
    cluster.kube.ready("d0", True)
    await until(lambda: len(server.health.nodes["d0"].drained_for) == 1)
    assert server.health.nodes["d0"].is_draining
    server.fleet.resume("d0")
    await until(lambda: "d0" in up(server))


async def test_a_pod_that_comes_back_elsewhere_is_the_same_node_there(
    cluster: Cluster, bench, body, until
) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0")
    server = await cluster.router()
    await until(lambda: up(server) == {"p0", "d0"})
    other = await bench.node("d0")
    cluster.kube.delete("d0")
    cluster.kube.put(pod("d0", "decode", port=other.port, uid="again"))
    await until(lambda: server.fleet.nodes["d0"].url == other.url and "d0" in up(server))
    assert (await bench.ask(server, body)).status == 200
    assert len(other.posts) == 1


async def test_a_router_waits_for_its_first_decode_pod(cluster: Cluster, until) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0", is_ready=False)
    starting = asyncio.ensure_future(cluster.router())
    await until(lambda: cluster.kube.watches == 1)
    assert not starting.done()
    cluster.kube.ready("d0", True)
    server = await starting
    await until(lambda: up(server) == {"p0", "d0"})


async def test_a_router_without_decode_pods_says_so(cluster: Cluster) -> None:
    await cluster.pod("p0")
    with pytest.raises(ConfigError, match=r"no decode pod is ready after 0.05 s; 1 pods match"):
        await cluster.router(start_wait_s=0.05)


async def test_a_router_without_the_role_ends_at_once(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match="get, list and watch pods; give it that role"):
        await cluster.router(namespace="elsewhere", start_wait_s=60)


async def test_a_router_without_a_server_ends_after_its_wait(cluster: Cluster) -> None:
    await cluster.kube.stop()
    with pytest.raises(ConfigError, match="connection_refused"):
        await cluster.router(start_wait_s=0.05)
    await cluster.kube.start()


async def test_how_the_search_goes_can_be_seen(cluster: Cluster, bench, until) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0")
    server = await cluster.router()
    await until(lambda: cluster.kube.watches == 1)
    cluster.kube.put(pod("lost", "decode", port=None))
    cluster.kube.refusals = [500]
    cluster.kube.cut_watches()
    search = server._admin.discovery
    search = server._admin.discovery
    await until(lambda: sum(search.failures().values()) == 2 and search.pods.found.faults)
    page = (await bench.page(server, "/metrics")).body.decode()
    assert 'spillway_discovery_failures_total{kind="http_500"} 1' in page
    assert 'spillway_discovery_failures_total{kind="broken_off"} 1' in page
    assert "\nspillway_discovery_pods_refused 1" in page
    assert "\nspillway_discovery_age_seconds 0" in page


async def test_a_router_that_stops_asks_no_more(cluster: Cluster, bench, until) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0")
    server = await cluster.router()
    bench.servers.remove(server)
    await server.close()
    await until(lambda: cluster.kube.watches == 0)
    asked = len(cluster.kube.asked)
    cluster.kube.put(pod("d1", "decode"))
    await asyncio.sleep(0.05)
    assert len(cluster.kube.asked) == asked


async def test_the_check_before_the_start_asks_the_pods_too(cluster: Cluster) -> None:
    await cluster.pod("p0")
    await cluster.pod("d0")
    result = await _checked(cluster.config(), ExpectedBatch(8, 1000, 1000), try_pairs=False)
    assert {node.node_id for node in result.nodes} == {"p0", "d0"}
