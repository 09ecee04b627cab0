"""A simulated run as one typed value, and random ones drawn from a seed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from spillway.core.errors import ConfigError
from spillway.core.policies import POLICY_NAMES
from spillway.core.prefixes import STALE_S
from spillway.core.types import ChunkMode, NodeId, NodeSpec, Role, Slo
from spillway.sim.faults import Fault, NodeDies, NodeSlows
from spillway.sim.nodes import NodeChange
from spillway.wire.profile import DEFAULT_PROFILE, ProfileFile, load_profile_file
from spillway.workload.row import Row
from spillway.workload.seeds import stream
from spillway.workload.synthetic import FAMILIES, family

NODES_MAX = 4096
ROUTERS_MAX = 64
DEFAULT_CLASS = "default"
# What of a scenario a node's `NodeSpec` takes as it is.
SPEC_FIELDS = (
    "step_tokens_max",
    "chunk_mode",
    "chunk_tokens_max",
    "chunk_tokens_multiple",
    "seqs_max",
    "tbt_margin_frac",
    "kv_capacity_tokens",
    "link_bytes_per_s",
    "link_base_s",
)
AS_THE_REST = NodeChange()


def parse_cluster(text: str) -> tuple[int, int]:
    """Return (prefill nodes, decode nodes) of a text such as `2p2d`. Raises ConfigError."""
    match = re.fullmatch(r"(\d{1,4})p(\d{1,4})d", text)
    if match is None:
        raise ConfigError(f"cluster {text!r} is not of the form 2p2d: prefill and decode nodes")
    prefill_nodes, decode_nodes = int(match[1]), int(match[2])
    if not (1 <= prefill_nodes <= NODES_MAX and 1 <= decode_nodes <= NODES_MAX):
        raise ConfigError(f"cluster {text!r}: each pool needs 1 to {NODES_MAX} nodes")
    return prefill_nodes, decode_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that shapes a run besides its rows and its seed.

    cluster: `2p2d` and the like; the nodes are called p0, p1, ... and d0, d1, ...
    profile: what router and nodes believe. kv_capacity_tokens: None takes the profile's.
    nodes: what single nodes have of their own (`nodes.py`).
    bias_frac, noise_frac: how the true step times differ from the profile (`world.py`).
    drift_frac: by what share steps have become slower, evenly, when the last request arrives.
    shadow: a policy that only says what it would have done; "" for none.
    slos: targets per service class; a class that is not listed has those of `default`.
    output_tokens_max: the limit that clients declare, raised where the true length exceeds it.
    report_period_s: 0 for nodes that never report. order_delay_s: from an order to its node.
    prefix_cache: nodes keep KV for prompts that begin alike. prefix_index: the router remembers
        which; what has not been used for prefix_stale_s counts half. For rows with prefix blocks.
    calibrated: nodes learn from their steps how far off the profile is; the router believes them.
    routers: how many share the nodes, each with books of its own; what they remember of prompts
        is one index all the same.
    closed_loop: a turn of a session arrives `think_s` after the one before has ended (`turns.py`).
    cancel_frac: share of the clients that leave, after an exponential time of mean patience_s.
    """

    cluster: str = "2p2d"
    nodes: Mapping[NodeId, NodeChange] = field(default_factory=dict)
    profile: str = DEFAULT_PROFILE
    kv_capacity_tokens: int | None = None
    link_bytes_per_s: float = 25e9
    link_base_s: float = 0.002
    step_tokens_max: int = 2048
    chunk_mode: ChunkMode = ChunkMode.ENGINE
    chunk_tokens_max: int = 2048
    chunk_tokens_multiple: int = 64
    tbt_margin_frac: float = 0.9
    seqs_max: int = 256
    policy: str = "headroom"
    policy_options: Mapping[str, object] = field(default_factory=dict)
    shadow: str = ""
    slos: Mapping[str, Slo] = field(default_factory=lambda: {DEFAULT_CLASS: Slo(1.0, 0.06)})
    output_tokens_max: int = 4096
    bias_frac: float = 1.0
    noise_frac: float = 0.0
    drift_frac: float = 0.0
    report_period_s: float = 0.1
    report_delay_s: float = 0.0
    report_loss_frac: float = 0.0
    report_age_max_s: float = 1.0
    retries_max: int = 2
    order_delay_s: float = 0.0
    calibrated: bool = True
    prefix_cache: bool = True
    prefix_index: bool = True
    prefix_stale_s: float = STALE_S
    routers: int = 1
    closed_loop: bool = False
    cancel_frac: float = 0.0
    patience_s: float = 2.0
    faults: tuple[Fault, ...] = ()

    def __post_init__(self) -> None:
        parse_cluster(self.cluster)
        if DEFAULT_CLASS not in self.slos:
            raise ConfigError(f"slos must have an entry {DEFAULT_CLASS!r}")
        if not 0 <= self.cancel_frac <= 1:
            raise ConfigError(f"cancel_frac is {self.cancel_frac}; it must be between 0 and 1")
        for name in ("patience_s", "output_tokens_max", "prefix_stale_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not -1 < self.drift_frac < inf:
            raise ConfigError(f"drift_frac is {self.drift_frac}; it must be above -1 and finite")
        if not 1 <= self.routers <= ROUTERS_MAX:
            raise ConfigError(f"routers is {self.routers}; it must be between 1 and {ROUTERS_MAX}")
        if not self.order_delay_s >= 0:
            raise ConfigError(f"order_delay_s is {self.order_delay_s}; it must not be negative")

    def specs(self) -> list[NodeSpec]:
        """Return every node, prefill first. Reads the profile. Raises ConfigError."""
        prefill_nodes, decode_nodes = parse_cluster(self.cluster)
        named = [(f"p{i}", Role.PREFILL) for i in range(prefill_nodes)]
        named += [(f"d{i}", Role.DECODE) for i in range(decode_nodes)]
        strangers = set(self.nodes) - {node_id for node_id, _ in named}
        if strangers:
            raise ConfigError(f"there is no node {min(strangers)!r} in a cluster {self.cluster}")
        as_all = {name: getattr(self, name) for name in SPEC_FIELDS}
        names = {self.profile, *(change.profile or self.profile for change in self.nodes.values())}
        files = {name: load_profile_file(name) for name in names}
        return [self._spec(node_id, role, as_all, files) for node_id, role in named]

    def bias_of(self, node_id: NodeId) -> float:
        """Return the factor between a node's true step times and its profile, before any drift."""
        own = self.nodes[node_id].bias_frac if node_id in self.nodes else None
        return self.bias_frac if own is None else own

    def _spec(
        self,
        node_id: NodeId,
        role: Role,
        as_all: dict[str, Any],
        files: Mapping[str, ProfileFile],
    ) -> NodeSpec:
        change = self.nodes.get(node_id, AS_THE_REST)
        file = files[change.profile or self.profile]
        settings = as_all | change.of_spec()
        if settings["kv_capacity_tokens"] is None:
            settings["kv_capacity_tokens"] = file.kv_capacity_tokens
        return NodeSpec(node_id=node_id, role=role, profile=file.latency(), **settings)


def swarm(seed: int) -> tuple[Scenario, list[Row]]:
    """Return a random scenario and its rows: small, often broken, the same for the same seed."""
    rng = stream(seed, "swarm")
    prefill_nodes, decode_nodes = rng.randint(1, 3), rng.randint(1, 3)
    duration_s = rng.uniform(3.0, 12.0)
    names = [f"p{i}" for i in range(prefill_nodes)] + [f"d{i}" for i in range(decode_nodes)]
    tbt_s = rng.choice([0.02, 0.04, 0.06, 0.2])
    scenario = Scenario(
        cluster=f"{prefill_nodes}p{decode_nodes}d",
        kv_capacity_tokens=rng.choice([None, 0, 20_000, 60_000]),
        link_bytes_per_s=rng.choice([25e9, 2e9, 4e8]),
        chunk_mode=rng.choice([ChunkMode.ENGINE, ChunkMode.ENGINE, ChunkMode.STATIC]),
        chunk_tokens_max=rng.choice([256, 512, 2048]),
        seqs_max=rng.choice([4, 32, 256]),
        policy=rng.choice((*POLICY_NAMES, *("headroom",) * len(POLICY_NAMES))),
        slos={
            DEFAULT_CLASS: Slo(rng.choice([0.3, 1.0, 3.0]), tbt_s),
            "chat": Slo(0.5, rng.choice([tbt_s, 0.05])),
        },
        bias_frac=rng.choice([1.0, 1.0, 0.8, 1.3]),
        noise_frac=rng.choice([0.0, 0.0, 0.1, 0.4]),
        report_period_s=rng.choice([0.02, 0.1, 0.5, 0.0]),
        report_delay_s=rng.choice([0.0, 0.0, 0.03, 0.4]),
        report_loss_frac=rng.choice([0.0, 0.0, 0.2, 1.0]),
        order_delay_s=rng.choice([0.0, 0.0, 0.003]),
        cancel_frac=rng.choice([0.0, 0.0, 0.2]),
        routers=rng.choice([1, 1, 1, 3]),
        patience_s=rng.choice([0.2, 2.0]),
        faults=_faults(rng, names, duration_s),
    )
    name = rng.choice(sorted(FAMILIES))
    rate_per_s = FAMILIES[name].rate_per_s * rng.choice([0.3, 1.0, 3.0])
    return scenario, family(name, seed, duration_s, rate_per_s)


def _faults(rng: Random, node_ids: list[str], duration_s: float) -> tuple[Fault, ...]:
    faults: list[Fault] = []
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        node_id = rng.choice(node_ids)
        at_s = rng.uniform(0.0, duration_s)
        until_s = at_s + rng.choice([0.2, 2.0, float("inf")])
        if rng.random() < 0.5:
            faults.append(NodeDies(node_id=node_id, at_s=at_s, back_s=until_s))
        else:
            scale_frac = rng.choice([0.5, 2.0, 8.0])
            faults.append(
                NodeSlows(node_id=node_id, at_s=at_s, scale_frac=scale_frac, until_s=until_s)
            )
    return tuple(faults)
