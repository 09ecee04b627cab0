"""Reads the configuration file again, by signal, by request, or because it changed.

Nodes and the targets of classes change in place. Everything else needs a restart, and is named. A
file with a fault changes nothing; the fault is logged and counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from spillway.core.errors import ConfigError
from spillway.core.types import Role
from spillway.router.credentials import ApiKeys
from spillway.router.discovery import Discovery
from spillway.router.fleet import Fleet
from spillway.router.settings import Classes
from spillway.router.shell import Shell
from spillway.wire.config import DEFAULT_CLASS, ClusterConfig, Node, load_config

Stamp = tuple[int, int, int]
# What a reload leaves as it is.
FIXED = ("router", "policy", "shadow", "limits", "discovery", "tracing")


class Reloader:
    """Keeps a router at what its configuration file says.

    keys: read again as well; None where none are looked at.
    path: None for a router whose configuration came from flags, which has nothing to read again.
    """

    def __init__(
        self,
        shell: Shell,
        fleet: Fleet,
        keys: ApiKeys | None,
        config: ClusterConfig,
        path: Path | None,
        discovery: Discovery,
    ) -> None:
        self._keys = keys
        self.discovery = discovery
        self._shell = shell
        self._fleet = fleet
        self._config = config
        self._path = path
        self._stamp = _stamp(path)
        self._refused = ""

    def reload(self) -> dict[str, Any]:
        """Read the file again and return what it changed. Raises ConfigError, changing nothing."""
        if self._path is None:
            raise ConfigError("this router was started from flags; there is no file to read again")
        self._stamp = _stamp(self._path)
        shell = self._shell
        try:
            config = load_config(self._path)
            classes = Classes(config.slos(), DEFAULT_CLASS)
            if self._keys is not None:
                self._keys.read()
            joined, left = self._fleet.apply(self.discovery.all_nodes(config))
        except ConfigError as error:
            shell.metrics.reloads["refused"] += 1
            shell.log.note("error", "reload_refused", fault=str(error))
            raise
        shell.admission.classes = classes
        needs_restart = [
            name for name in FIXED if getattr(config, name) != getattr(self._config, name)
        ]
        self._config = replace(config, **{name: getattr(self._config, name) for name in FIXED})
        shell.metrics.reloads["done"] += 1
        changed = {"joined": joined, "left": left, "needs_restart": needs_restart}
        self.hold_off()
        shell.log.note("info", "reloaded", **changed)
        return changed

    def reload_quietly(self) -> None:
        """The same for a caller that can be told nothing: a signal, or the watch."""
        try:
            self.reload()
        except ConfigError:
            return  # counted and logged where it was raised

    async def discover(self) -> None:
        """Look for nodes by their names, and take up what changed."""
        try:
            is_news = await self.discovery.look()
        except ConfigError as error:
            self._shell.log.note("error", "discovery_refused", fault=str(error))
        else:
            if is_news or self._refused:
                self.take_up()

    def take_up(self) -> None:
        """Make the fleet what is listed and found. What cannot be is tried again by `discover`."""
        refused = ""
        try:
            self._fleet.apply(self.discovery.all_nodes(self._config))
        except ConfigError as error:
            refused = str(error)
            if refused != self._refused:
                self._shell.log.note("error", "discovery_refused", fault=refused)
        self._refused = refused
        self.hold_off()

    def hold_off(self) -> None:
        """Give no work to nodes whose pods are not ready."""
        if self.discovery.pods is not None:
            self._fleet.hold_off(self.discovery.pods.found.unready)

    def watch(self) -> None:
        """Read the file again if it is another one than last time."""
        if self._path is not None and _stamp(self._path) not in (self._stamp, None):
            self.reload_quietly()

    def build(self, keys: Mapping[str, Any], role: Role) -> Node:
        """Return a node of the keys that the file would have for it. Raises ConfigError."""
        if "name" not in keys:
            raise ConfigError("node: name is missing; a node that is added needs one")
        return self._config.build_node(role, keys)


def _stamp(path: Path | None) -> Stamp | None:
    """Return what changes when a file is written or replaced; None while it cannot be read."""
    try:
        seen = path.stat() if path is not None else None
    except OSError:
        return None  # between two versions of it: the next look finds the new one
    return None if seen is None else (seen.st_mtime_ns, seen.st_size, seen.st_ino)
