"""Which nodes the pods of a cluster are: their role, where they listen, whether they are ready.

A pod becomes a node when it is first ready. One that is no longer ready gets no more work until it
is again. One that is told to end, or is gone, leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from spillway.clock import MonotonicClock
from spillway.core.errors import ConfigError
from spillway.core.types import NodeId, Role
from spillway.router.kubeclient import ApiFault, KubeClient
from spillway.router.kubewatch import PodWatch
from spillway.router.settings import RouterSettings
from spillway.wire.config import ClusterConfig, Node
from spillway.wire.discoveryconfig import KubernetesConfig
from spillway.wire.kubeapi import Pod
from spillway.wire.kubeconfig import HERE, from_kubeconfig, in_cluster

FINAL = (401, 403, 404)  # a router that starts does not wait for these to change
PORT, REPORT_PORT = "spillway/port", "spillway/report-port"


class Found(NamedTuple):
    """What the pods amount to.

    nodes: those that are to be there.  unready: their ids, of those that get no work for now.
    faults: of pods that cannot be nodes as they are described, by name.
    """

    nodes: list[Node]
    unready: frozenset[NodeId]
    faults: dict[str, str]


class PodNodes:
    """Makes nodes of pods, and remembers which have been ready."""

    def __init__(self, config: ClusterConfig, kubernetes: KubernetesConfig) -> None:
        self._config = config
        self._kubernetes = kubernetes
        self._joined: set[str] = set()  # uids
        self._keeps_decode = not (config.nodes.decode or config.discovery.decode)
        self._last_decode: list[Node] = []

    @property
    def selector(self) -> str:
        """The label selector of pods with a role, which the server can apply for us."""
        kubernetes = self._kubernetes
        roles = ",".join(role.value for role in Role)
        return f"{kubernetes.selector},{kubernetes.role_label} in ({roles})"

    def read(self, pods: Mapping[str, Pod]) -> Found:
        """Return the nodes that the pods are, by name.

        The last decode nodes stay until there are others: a router has at least one, and finds out
        by itself that it does not answer.
        """
        nodes: list[Node] = []
        unready: set[NodeId] = set()
        faults: dict[str, str] = {}
        uids = {pod.metadata.uid for pod in pods.values()}
        self._joined &= uids
        for name in sorted(pods):
            pod = pods[name]
            if pod.is_ending or not pod.status.pod_ip:
                continue
            if pod.is_ready:
                self._joined.add(pod.metadata.uid)
            elif pod.metadata.uid in self._joined:
                unready.add(name)
            else:
                continue
            try:
                nodes.append(self._node(pod))
            except ConfigError as error:
                faults[name] = str(error)
        decode = [node for node in nodes if node.spec.role is Role.DECODE]
        if decode:
            self._last_decode = decode
        elif self._keeps_decode:
            nodes += self._last_decode
        return Found(nodes, frozenset(unready), faults)

    def _node(self, pod: Pod) -> Node:
        """Return the node that a pod is. Raises ConfigError, naming the pod."""
        meta = pod.metadata
        label = (meta.labels or {}).get(self._kubernetes.role_label, "")
        if label not in (Role.PREFILL, Role.DECODE):
            raise ConfigError(
                f"pod {meta.name}: {self._kubernetes.role_label} is {label!r}; "
                "write prefill or decode"
            )
        address = pod.status.pod_ip
        host = f"[{address}]" if ":" in address else address
        port = self._port(pod, PORT, self._kubernetes.port_name)
        if port is None:
            raise ConfigError(
                f"pod {meta.name}: which port? name a container port "
                f"{self._kubernetes.port_name!r}, or annotate the pod with {PORT}"
            )
        keys = {"name": meta.name, "url": f"http://{host}:{port}"}
        report_port = self._port(pod, REPORT_PORT, self._kubernetes.report_port_name)
        if report_port is not None:
            keys["report_url"] = f"http://{host}:{report_port}"
        return self._config.build_node(Role(label), keys)

    def _port(self, pod: Pod, annotation: str, name: str) -> int | None:
        given = (pod.metadata.annotations or {}).get(annotation)
        if given is not None:
            if given.isascii() and given.isdigit() and 0 < int(given[:6]) < 65536:
                return int(given)
            raise ConfigError(f"pod {pod.metadata.name}: {annotation} is {given[:32]!r}; no port")
        for container in pod.spec.containers:
            for port in container.ports or ():
                if port.name == name:
                    return port.container_port
        return None


class Pods:
    """The nodes that the API server tells of, as long as the watch runs.

    on_change: called when `found` is another than before.
    on_fault: called with the text of what is wrong with a pod, or with the API, once.
    found: the nodes as of now.  watch: where it comes from, and how that fares.
    Raises ConfigError if it is not clear how to reach the API server.
    """

    def __init__(self, config: ClusterConfig, kubernetes: KubernetesConfig) -> None:
        access = (
            from_kubeconfig(Path(kubernetes.kubeconfig), kubernetes.context)
            if kubernetes.kubeconfig
            else in_cluster()
        )
        self._nodes = PodNodes(config, kubernetes)
        self._start_wait_s = kubernetes.start_wait_s
        self._selector = self._nodes.selector
        self._namespace = kubernetes.namespace or access.namespace
        client = KubeClient(access, RouterSettings(**config.router.given()))
        self.watch = PodWatch(client, self._namespace, self._selector, MonotonicClock())
        self.watch.on_change = self._read
        self.watch.on_fault = self._told_fault
        self.on_change: Callable[[], None] = lambda: None
        self.on_fault: Callable[[str], None] = lambda text: None
        self.found = Found([], frozenset(), {})
        self._api_fault: ApiFault | None = None
        self._moved = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self, *, needs_decode: bool) -> None:
        """Watch from here on; return when pods are known and, if needed, one can decode.

        Raises ConfigError if that takes longer than `start_wait_s`, or is refused for good.
        """
        self._running = asyncio.get_running_loop().create_task(self.watch.run())
        try:
            async with asyncio.timeout(self._start_wait_s):
                while not self._is_enough(needs_decode):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            self.close()
            raise ConfigError(f"{HERE}: {self._why_not()}") from None
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Watch no more."""
        if self._running is not None:
            self._running.cancel()

    def _is_enough(self, needs_decode: bool) -> bool:
        fault = self._api_fault
        if fault is not None and fault.status in FINAL and not self.watch.is_listed:
            raise ConfigError(f"{HERE}: {fault}")
        has_decode = any(node.spec.role is Role.DECODE for node in self.found.nodes)
        return self.watch.is_listed and (has_decode or not needs_decode)

    def _why_not(self) -> str:
        if not self.watch.is_listed:
            return str(self._api_fault or "the Kubernetes API server has not answered")
        if self.found.faults:
            return next(iter(self.found.faults.values()))
        count = len(self.watch.pods)
        return (
            f"no decode pod is ready after {self._start_wait_s:g} s; "
            f"{count} pods match {self._selector!r} in namespace {self._namespace}"
        )

    def _read(self) -> None:
        before, self.found = self.found, self._nodes.read(self.watch.pods)
        for name, text in self.found.faults.items():
            if before.faults.get(name) != text:
                self.on_fault(text)
        self._moved.set()
        if before[:2] != self.found[:2]:
            self.on_change()

    def _told_fault(self, fault: ApiFault) -> None:
        self._api_fault = fault
        self._moved.set()
        self.on_fault(str(fault))


def beside(listed: Iterable[Node], found: Iterable[Node]) -> list[Node]:
    """Return the listed nodes, and those found that have neither their name nor their URL."""
    nodes = list(listed)
    names, urls = {node.spec.node_id for node in nodes}, {node.url for node in nodes}
    for node in found:
        if node.spec.node_id not in names and node.url not in urls:
            names.add(node.spec.node_id)
            urls.add(node.url)
            nodes.append(node)
    return nodes
