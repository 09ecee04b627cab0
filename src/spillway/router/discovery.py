"""Finds nodes that the configuration does not list: by DNS, and by the Kubernetes API.

Every address of a name is a node, as behind a headless Kubernetes service; what pods are is told by
`kubenodes.py`. A name that cannot be resolved, or to nothing, changes nothing, nor does an API
server that does not answer: nodes may well work meanwhile. Whether they do, their health says.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.router.kubenodes import Pods, beside
from spillway.wire.config import ClusterConfig, Node

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name, sorted. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class Discovery:
    """The nodes that were found, as of the last answers.

    dns_failures: names without an answer.
    pods: those that the API server tells of; None where it is not asked.
    Whoever asks decides what to do with `nodes`. Raises ConfigError without access to the API.
    """

    def __init__(self, config: ClusterConfig, ask: Resolve = resolve) -> None:
        self._config = config
        self._ask = ask
        self._by_role: dict[Role, list[Node]] = {}
        self.dns_failures = 0
        kubernetes = config.discovery.kubernetes
        self.pods = None if kubernetes is None else Pods(config, kubernetes)

    @property
    def interval_s(self) -> float:
        return self._config.discovery.interval_s

    @property
    def is_wanted(self) -> bool:
        names = self._config.discovery
        return bool(names.prefill or names.decode or self.pods is not None)

    @property
    def nodes(self) -> list[Node]:
        by_name = [node for nodes in self._by_role.values() for node in nodes]
        return by_name if self.pods is None else by_name + self.pods.found.nodes

    def all_nodes(self, config: ClusterConfig) -> list[Node]:
        """Return the nodes that a configuration lists, and beside them those found."""
        return beside(config.build_nodes(), self.nodes)

    def failures(self) -> Counter[str]:
        """Return how many questions had no answer, by kind."""
        failures = Counter(self.pods.watch.failures if self.pods is not None else ())
        failures["dns"] = self.dns_failures
        return failures

    async def start(self) -> None:
        """Ask once, and return when it is known what there is. Raises ConfigError.

        A router needs a decode node; where pods alone can be one, the first of them is waited for.
        """
        await self.look()
        if self.pods is not None:
            listed = self._config.nodes.decode or self._by_role.get(Role.DECODE)
            await self.pods.start(needs_decode=not listed)

    def close(self) -> None:
        """Ask nothing more."""
        if self.pods is not None:
            self.pods.close()

    async def look(self) -> bool:
        """Ask for every name again; return whether the nodes are others than before.

        Raises ConfigError for a name that is no HOST:PORT.
        """
        before = self.nodes
        names = self._config.discovery
        for role, name in ((Role.PREFILL, names.prefill), (Role.DECODE, names.decode)):
            if not name:
                continue
            host, port = self._split(name, role)
            try:
                addresses = await asyncio.wait_for(self._ask(host, port), self.interval_s)
            except (OSError, TimeoutError):
                addresses = ()
            if addresses:
                self._by_role[role] = [self._node(role, one, port) for one in addresses]
            else:
                self.dns_failures += 1
        return self.nodes != before

    def _split(self, name: str, role: Role) -> tuple[str, int]:
        host, _, port = name.rpartition(":")
        if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ConfigError(f"discovery.{role}: is {name!r}; write HOST:PORT")
        return host, int(port)

    def _node(self, role: Role, address: str, port: int) -> Node:
        """Return the node at an address, which its name is made of, so that it stays the same."""
        host = f"[{address}]" if ":" in address else address
        plain = address.replace(".", "-").replace(":", "-")
        keys = {"name": f"{role}-{plain}", "url": f"http://{host}:{port}"}
        return self._config.build_node(role, keys)
