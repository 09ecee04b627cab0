"""Finds nodes by DNS: every address of a name is a node, as behind a headless Kubernetes service.

A name that cannot be resolved, or to nothing, changes nothing: nodes that are there may well work
while the name server does not. Whether they do, their health says.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.wire.config import ClusterConfig, Node

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses of a name, sorted. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(address[0]) for *_, address in found})


class Discovery:
    """The nodes that names stand for, as of the last answers.

    failures: questions without an answer. Whoever asks decides what to do with `nodes`.
    """

    def __init__(self, config: ClusterConfig, ask: Resolve = resolve) -> None:
        self._config = config
        self._ask = ask
        self._by_role: dict[Role, list[Node]] = {}
        self.failures = 0

    @property
    def interval_s(self) -> float:
        return self._config.discovery.interval_s

    @property
    def is_wanted(self) -> bool:
        return bool(self._config.discovery.prefill or self._config.discovery.decode)

    @property
    def nodes(self) -> list[Node]:
        return [node for nodes in self._by_role.values() for node in nodes]

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
                self.failures += 1
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
