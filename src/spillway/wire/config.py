"""The configuration of a router: which nodes there are, what to protect, and how to decide.

One YAML file or the flags of `spillway serve` give the same `ClusterConfig`; everything else is
derived from it. Every error is one line with the file (or flag), the key and what is allowed.
Documented for users by examples/cluster.yaml.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from spillway.core.decide import Policy
from spillway.core.dispatcher import DispatchLimits
from spillway.core.errors import ConfigError
from spillway.core.policies import build_policy, option_text
from spillway.core.shadow import with_shadow
from spillway.core.types import NodeSpec, Role, Slo
from spillway.wire.bounds import Count, NotNegative, Positive, Text
from spillway.wire.codec import KeyPath, Where, convert, dotted
from spillway.wire.discoveryconfig import DiscoveryConfig
from spillway.wire.nodesconfig import DecodeNode, NodeDefaults, NodesConfig, PrefillNode
from spillway.wire.nodeurl import origin, url_fault
from spillway.wire.profile import (
    DEFAULT_PROFILE,
    ProfileFile,
    builtin_names,
    load_profile_file,
)
from spillway.wire.routerconfig import RouterConfig
from spillway.wire.tracingconfig import TracingConfig

T = TypeVar("T")

DEFAULT_CLASS = "default"


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A policy by name; its options are checked when it is built."""

    name: Text = "headroom"
    options: dict[str, Any] = {}

    def build(self) -> Policy:
        """Return the policy. Raises ConfigError."""
        return build_policy(self.name, self.options)

    def text(self) -> str:
        """Return the policy as it is named on a command line, options included."""
        options = ",".join(f"{key}={option_text(value)}" for key, value in self.options.items())
        if not options:
            return self.name
        return f"{self.name}{',' if ':' in self.name else ':'}{options}"


class ClassConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The targets of a service class. `default` holds for requests that name none.

    priority, queue_max, queue_wait_s: how its requests wait when `router.inflight_max` run: classes
        of a higher priority go first, more than that many are refused, as is who waits for longer.
    """

    ttft_s: Positive = 1.0
    tbt_s: Positive = 0.06
    priority: int = 0
    queue_max: Count = 256
    queue_wait_s: Positive = 5.0


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the decisions; see `core.dispatcher.DispatchLimits`."""

    report_age_max_s: Positive = 1.0
    retries_max: Count = 2
    calibrated: bool = True
    held_max: Count = 1024
    hold_s_max: NotNegative = 30.0
    reject_late: bool = False

    def build(self) -> DispatchLimits:
        """Return the dispatcher's own form."""
        return DispatchLimits(**asdict(self))


class Node(NamedTuple):
    """A configured node: what the dispatcher knows of it, and where it listens.

    url, report_url: http://host:port; no report_url means that reports come from `url`, if any.
    """

    spec: NodeSpec
    url: str
    report_url: str = ""


class ClusterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration. shadow: a policy that only says what it would have done."""

    nodes: NodesConfig = NodesConfig()
    discovery: DiscoveryConfig = DiscoveryConfig()
    router: RouterConfig = RouterConfig()
    defaults: NodeDefaults = NodeDefaults()
    policy: PolicyConfig = PolicyConfig()
    shadow: PolicyConfig | None = None
    classes: dict[str, ClassConfig] = {}
    limits: LimitsConfig = LimitsConfig()
    tracing: TracingConfig | None = None

    def slos(self) -> dict[str, Slo]:
        """Return the targets of each class; `default` is always there."""
        classes = {DEFAULT_CLASS: ClassConfig(), **self.classes}
        return {name: Slo(targets.ttft_s, targets.tbt_s) for name, targets in classes.items()}

    def build_routing(self) -> Policy:
        """Return the policy that routes, with the shadow looking on. Raises ConfigError."""
        policy, shadow = self.policy.build(), self.shadow
        return policy if shadow is None else with_shadow(policy, shadow.build(), shadow.text())

    def build_nodes(self) -> list[Node]:
        """Return every node, prefill first. Reads the profiles. Raises ConfigError."""
        prefill = [self._prefill(node, i) for i, node in enumerate(self.nodes.prefill)]
        return prefill + [self._decode(node, i) for i, node in enumerate(self.nodes.decode)]

    def build_node(self, role: Role, keys: Mapping[str, Any]) -> Node:
        """Return a node of the keys that the file would have for it. Raises ConfigError."""

        def where(path: KeyPath) -> str:
            return dotted(("node", *path))

        if role is Role.PREFILL:
            return self._prefill(convert(keys, PrefillNode, where), 0)
        return self._decode(convert(keys, DecodeNode, where), 0)

    def _prefill(self, node: PrefillNode, index: int) -> Node:
        common = self.defaults
        profile = load_profile_file(node.profile or common.profile)
        spec = NodeSpec(
            node_id=node.name or f"p{index}",
            role=Role.PREFILL,
            profile=profile.latency(),
            kv_capacity_tokens=self._kv_capacity_tokens(node, profile),
            link_bytes_per_s=_or(node.link_bytes_per_s, common.link_bytes_per_s),
            link_base_s=_or(node.link_base_s, common.link_base_s),
            step_tokens_max=_or(node.step_tokens_max, common.step_tokens_max),
        )
        return Node(spec, origin(node.url), origin(node.report_url or ""))

    def _decode(self, node: DecodeNode, index: int) -> Node:
        common = self.defaults
        profile = load_profile_file(node.profile or common.profile)
        spec = NodeSpec(
            node_id=node.name or f"d{index}",
            role=Role.DECODE,
            profile=profile.latency(),
            kv_capacity_tokens=self._kv_capacity_tokens(node, profile),
            link_bytes_per_s=_or(node.link_bytes_per_s, common.link_bytes_per_s),
            link_base_s=_or(node.link_base_s, common.link_base_s),
            chunk_mode=_or(node.chunk_mode, common.chunk_mode),
            chunk_tokens_max=_or(node.chunk_tokens_max, common.chunk_tokens_max),
            chunk_tokens_multiple=_or(node.chunk_tokens_multiple, common.chunk_tokens_multiple),
            tbt_margin_frac=common.tbt_margin_frac,
            seqs_max=_or(node.seqs_max, common.seqs_max),
        )
        return Node(spec, origin(node.url), origin(node.report_url or ""))

    def _kv_capacity_tokens(self, node: PrefillNode | DecodeNode, profile: ProfileFile) -> int:
        configured = _or(node.kv_capacity_tokens, self.defaults.kv_capacity_tokens)
        return _or(configured, profile.kv_capacity_tokens)


def load_config(path: str | Path) -> ClusterConfig:
    """Return the checked configuration of a YAML file. Raises ConfigError, one line."""
    from spillway.wire.yamlfile import read_yaml  # PyYAML comes with the router, not with wire

    content, where = read_yaml(Path(path))
    config = _with_profiles_beside(convert(content, ClusterConfig, where), Path(path).parent)
    _check(config, where)
    return config


def config_from_flags(
    prefill_urls: Sequence[str],
    decode_urls: Sequence[str],
    *,
    profile: str = DEFAULT_PROFILE,
    policy: str = "headroom",
    policy_options: Mapping[str, object] | None = None,
    shadow: str | None = None,
    slo_ttft_s: float = 1.0,
    slo_tbt_s: float = 0.06,
    router: Mapping[str, object] | None = None,
) -> ClusterConfig:
    """Return the checked configuration that flags describe. `router`: keys of RouterConfig.

    Raises ConfigError naming the flag.
    """
    raw = {
        "nodes": {
            "prefill": [{"url": url} for url in prefill_urls],
            "decode": [{"url": url} for url in decode_urls],
        },
        "defaults": {"profile": profile},
        "policy": {"name": policy, "options": dict(policy_options or {})},
        "shadow": None if shadow is None else {"name": shadow},
        "classes": {DEFAULT_CLASS: {"ttft_s": slo_ttft_s, "tbt_s": slo_tbt_s}},
        "router": dict(router or {}),
    }
    config = convert(raw, ClusterConfig, _flag)
    _check(config, _flag)
    return config


def _flag(path: KeyPath) -> str:
    """Return the flag that sets the key at `path`."""
    match path:
        case ("nodes", "prefill" | "decode" as pool, *_):
            return f"--{pool}"
        case ("defaults" | "router", str(key), *_):
            return f"--{key}".replace("_", "-")
        case ("classes", _, str(key), *_):
            return f"--slo-{key}".replace("_", "-")
        case ("policy" | "shadow" as key, *_):
            return f"--{key}"
    return dotted(path) or "command line"


def _check(config: ClusterConfig, where: Where) -> None:
    """Raise ConfigError on the first fault that types alone cannot show."""
    for path, text in _faults(config):
        raise ConfigError(f"{where(path)}: {text}")


def _faults(config: ClusterConfig) -> Iterator[tuple[KeyPath, str]]:
    yield from _pool_faults(config)
    yield from _profile_faults(config)
    for key in ("policy", "shadow"):
        chosen: PolicyConfig | None = getattr(config, key)
        try:
            if chosen is not None:
                chosen.build()
        except ConfigError as error:
            yield (key,), str(error)


def _pool_faults(config: ClusterConfig) -> Iterator[tuple[KeyPath, str]]:
    seen: dict[str, str] = {}
    for pool, nodes in _pools(config):
        if not nodes and not config.discovery.may_find(pool):
            yield ("nodes", pool), f"is empty; at least one {pool} node is needed"
        for i, node in enumerate(nodes):
            at: KeyPath = ("nodes", pool, i)
            if fault := url_fault(node.url):
                yield (*at, "url"), f"is {node.url!r}; {fault}"
                continue
            name = node.name or f"{pool[0]}{i}"
            if node.report_url is not None and (fault := url_fault(node.report_url)):
                yield (*at, "report_url"), f"is {node.report_url!r}; {fault}"
                continue
            origins = [("url", origin(node.url))]
            if node.report_url is not None:
                origins.append(("report_url", origin(node.report_url)))
            for key, value in (*origins, ("name", name)):
                if value in seen:
                    yield (*at, key), _taken(value, seen[value], dotted(at))
                seen[value] = dotted(at)


def _taken(value: str, by: str, at: str) -> str:
    if by == at:
        return f"{value!r} is the node's own url; leave it out, reports are read there anyway"
    return f"{value!r} is already that of {by}"


def _profile_faults(config: ClusterConfig) -> Iterator[tuple[KeyPath, str]]:
    named: list[tuple[KeyPath, str | None]] = [(("defaults", "profile"), config.defaults.profile)]
    for pool, nodes in _pools(config):
        named += [(("nodes", pool, i, "profile"), node.profile) for i, node in enumerate(nodes)]
    for path, profile in named:
        try:
            if profile:
                load_profile_file(profile)
        except ConfigError as error:
            yield path, str(error)


def _pools(config: ClusterConfig) -> list[tuple[str, Sequence[PrefillNode | DecodeNode]]]:
    return [("prefill", config.nodes.prefill), ("decode", config.nodes.decode)]


def _with_profiles_beside(config: ClusterConfig, folder: Path) -> ClusterConfig:
    """Return the configuration with relative profile files taken from `folder`."""

    def beside(profile: str | None) -> str | None:
        if profile is None or profile in builtin_names():
            return profile
        path = folder / profile
        return str(path) if os.path.exists(path) or path.suffix == ".json" else profile

    return replace(
        config,
        defaults=replace(config.defaults, profile=beside(config.defaults.profile)),
        nodes=NodesConfig(
            prefill=[replace(node, profile=beside(node.profile)) for node in config.nodes.prefill],
            decode=[replace(node, profile=beside(node.profile)) for node in config.nodes.decode],
        ),
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
