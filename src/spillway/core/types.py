"""What a policy sees: the request, and the nodes as the ledger believes them to be.

Values that cross a boundary are frozen. The node views are the ledger's own live objects, slotted
and mutable so that a decision allocates none of them; a policy reads and never writes them.
No field anywhere tells a request's true output length: the type makes the oracle unreachable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, isfinite
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.core.latency import LatencyProfile, tokens_s

RequestId = str
NodeId = str


class Role(StrEnum):
    """Which pool a node belongs to."""

    PREFILL = "prefill"
    DECODE = "decode"


class Slo(NamedTuple):
    """Targets of one request, in seconds."""

    ttft_s: float
    tbt_s: float


class RequestView(NamedTuple):
    """A request as a policy may know it.

    cached_tokens_by_node: (node id, leading prompt tokens whose KV that node holds); absent is 0.
    output_tokens_max: the client's declared limit, never the true length.
    class_name: the service class that set `slo`; output lengths are learned per class.
    deadline_s: when its client gives up waiting for a first byte; nothing is retried after that.
    """

    request_id: RequestId
    arrival_s: float
    prompt_tokens: int
    output_tokens_max: int
    slo: Slo
    class_name: str = "default"
    cached_tokens_by_node: tuple[tuple[NodeId, int], ...] = ()
    deadline_s: float = inf

    def uncached_tokens(self, node_id: NodeId) -> int:
        """Return the prompt tokens that `node_id` has to compute: at least 1.

        An engine always recomputes the last prompt token, because its logits are what is sampled.
        """
        for node, cached in self.cached_tokens_by_node:
            if node == node_id:
                return max(1, self.prompt_tokens - cached)
        tokens = self.prompt_tokens
        return tokens if tokens > 1 else 1


class ChunkMode(StrEnum):
    """How the chunk of a deflected prompt is sized on a decode node."""

    ENGINE = "engine"  # a plug-in sizes each step to the residents' budget
    STATIC = "static"  # stock engine: a fixed setting, chunk_tokens_max, every step
    UNKNOWN = "unknown"  # nothing is known, so nothing may be deflected there


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What is known of a node before it says anything.

    step_tokens_max: scheduled tokens per step (vLLM max_num_batched_tokens) on a prefill node.
    chunk_tokens_max: largest prefill chunk of one step on a decode node.
    chunk_tokens_multiple: granularity of chunk sizes.
    tbt_margin_frac: the share of the strictest target that a step with deflected work may fill.
    kv_capacity_tokens: KV room; 0 when unknown, which vetoes deflection.
    link_bytes_per_s, link_base_s: KV transfer out of (prefill) or into (decode) this node.
    """

    node_id: NodeId
    role: Role
    profile: LatencyProfile
    step_tokens_max: int = 2048
    chunk_mode: ChunkMode = ChunkMode.ENGINE
    chunk_tokens_max: int = 2048
    chunk_tokens_multiple: int = 64
    seqs_max: int = 256
    tbt_margin_frac: float = 0.9
    kv_capacity_tokens: int = 0
    link_bytes_per_s: float = 25e9
    link_base_s: float = 0.002
    # Derived once: the seconds of a prefill step of the full budget.
    full_step_s: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("step_tokens_max", "chunk_tokens_max", "chunk_tokens_multiple", "seqs_max"):
            if getattr(self, name) < 1:
                raise ConfigError(f"node {self.node_id}: {name} must be at least 1")
        if self.kv_capacity_tokens < 0:
            raise ConfigError(f"node {self.node_id}: kv_capacity_tokens must not be negative")
        if not (isfinite(self.link_bytes_per_s) and self.link_bytes_per_s > 0):
            raise ConfigError(f"node {self.node_id}: link_bytes_per_s must be positive and finite")
        if not 0 < self.tbt_margin_frac <= 1:
            raise ConfigError(f"node {self.node_id}: tbt_margin_frac must be in (0, 1]")
        if not (isfinite(self.link_base_s) and self.link_base_s >= 0):
            raise ConfigError(f"node {self.node_id}: link_base_s must be finite and >= 0")
        full_s = self.profile.step_base_s + tokens_s(self.profile, self.step_tokens_max)
        object.__setattr__(self, "full_step_s", full_s)


@dataclass(slots=True, kw_only=True)
class NodeView:
    """One node as the ledger believes it to be at the moment of a decision.

    Both roles share the type: a prefill node decodes nothing, a decode node may hold prefill work.

    backlog_prompts, backlog_tokens, backlog_token_pairs: prompts not yet prefilled (queued and
        running), their remaining uncached tokens and attention work (`latency.token_pairs`).
    backlog_until_s: the moment at which that backlog is predicted to be done; in the past if none.
    decode_seqs: streams decoding, or on their way with their KV.
    kv_used_tokens: KV tokens resident or promised.
    tbt_s_min: strictest target among the residents; inf when there is none.
    link_until_s: the moment at which the node's KV link is predicted to be idle.
    heard_at_s: last report, or -inf; `reporting` says whether the node reports at all.
    usable: False once the node is lost, draining or refuses work.
    over_budget: the node says that decode alone exceeds its strictest target.
    drifting: its steps are too far from any profile to be predicted.
    """

    spec: NodeSpec
    backlog_prompts: int = 0
    backlog_tokens: int = 0
    backlog_token_pairs: float = 0.0
    backlog_until_s: float = -inf
    decode_seqs: int = 0
    kv_used_tokens: int = 0
    kv_capacity_tokens: int = 0
    tbt_s_min: float = inf
    link_until_s: float = -inf
    heard_at_s: float = -inf
    reporting: bool = False
    usable: bool = True
    over_budget: bool = False
    drifting: bool = False

    @property
    def node_id(self) -> NodeId:
        return self.spec.node_id

    def copied(self) -> NodeView:
        """Return a copy. Slot by slot it costs a tenth of what `dataclasses.replace` does."""
        twin = NodeView.__new__(NodeView)  # as a compiled class has to be made, too
        twin.spec = self.spec
        twin.backlog_prompts = self.backlog_prompts
        twin.backlog_tokens = self.backlog_tokens
        twin.backlog_token_pairs = self.backlog_token_pairs
        twin.backlog_until_s = self.backlog_until_s
        twin.decode_seqs = self.decode_seqs
        twin.kv_used_tokens = self.kv_used_tokens
        twin.kv_capacity_tokens = self.kv_capacity_tokens
        twin.tbt_s_min = self.tbt_s_min
        twin.link_until_s = self.link_until_s
        twin.heard_at_s = self.heard_at_s
        twin.reporting = self.reporting
        twin.usable = self.usable
        twin.over_budget = self.over_budget
        twin.drifting = self.drifting
        return twin


@dataclass(slots=True, kw_only=True)
class ClusterView:
    """Everything a policy may read besides the request. Nodes are ordered by node id.

    report_age_max_s: a reporting node that has been silent for longer gets no deflected work.
    decisions: how many requests were decided before this one (round-robin counts with it).
    may_hold: whether the request may be held back; off when the line is full, when it has waited
        for too long, and after a failed leg.
    output_tokens_by_class: learned quantile of completed output lengths, per class.
    """

    now_s: float = 0.0
    prefill: tuple[NodeView, ...] = ()
    decode: tuple[NodeView, ...] = ()
    report_age_max_s: float = 1.0
    decisions: int = 0
    may_hold: bool = False
    output_tokens_by_class: dict[str, int] = field(default_factory=dict)
