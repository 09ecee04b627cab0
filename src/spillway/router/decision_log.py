"""The last decisions in memory, and all of them on disk if asked for.

A line of the file holds a decision with every candidate and the whole view it was made on, so that
it can be made again elsewhere (`replay`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from math import inf

import msgspec

from spillway.core.decide import Policy
from spillway.core.events import LogDecision
from spillway.core.types import (
    ChunkMode,
    ClusterView,
    NodeId,
    NodeSpec,
    NodeView,
    RequestId,
    RequestView,
    Role,
    Slo,
)
from spillway.router.line_file import LineFile
from spillway.wire.decisions import DecisionBody, DecisionRecord, from_decision, from_log

NODES_KEPT_MAX = 4096


class NodeStanding(msgspec.Struct, frozen=True):
    """What a `core.types.NodeView` says beside its spec; None is the infinity of its default.

    backlog_endless: `backlog_until_s` is the other infinity: no chunk of the backlog is safe.
    """

    node_id: str
    role: Role
    backlog_prompts: int
    backlog_tokens: int
    backlog_token_pairs: float
    backlog_until_s: float | None
    backlog_endless: bool
    decode_seqs: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    tbt_s_min: float | None
    link_until_s: float | None
    heard_at_s: float | None
    reporting: bool
    usable: bool
    over_budget: bool
    drifting: bool


class NodeRecord(NodeStanding, frozen=True, kw_only=True):
    """A `core.types.NodeView`.

    Of its spec only what nodes teach the router while it runs: the law of its steps (without the
    hinges, which stay), its share of the target, and its chunks.
    """

    step_base_s: float
    token_s: tuple[float, ...]
    decode_seq_s: float = 0.0
    kv_token_s: float
    token_pair_s: float
    tbt_margin_frac: float
    chunk_mode: ChunkMode
    chunk_tokens_max: int


class ClusterRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A `core.types.ClusterView`, its nodes in the order the policy saw them."""

    now_s: float
    nodes: list[NodeRecord]
    report_age_max_s: float
    decisions: int
    output_tokens_by_class: dict[str, int]
    may_hold: bool


class _ClusterText(msgspec.Struct):
    """A `ClusterRecord` whose nodes are texts already; its fields are in the same order."""

    now_s: float
    nodes: list[msgspec.Raw]
    report_age_max_s: float
    decisions: int
    output_tokens_by_class: dict[str, int]
    may_hold: bool


class LoggedDecision(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log."""

    logged: DecisionRecord
    cluster: ClusterRecord | None = None

    def replay(self, policy: Policy, specs: dict[NodeId, NodeSpec]) -> DecisionBody:
        """Return what `policy` decides on the logged view; INV-8 says it is `logged.decision`.

        Raises ValueError if the line has no view, KeyError if a node has no spec.
        """
        if self.cluster is None:
            raise ValueError("this decision was logged without the view it was made on")
        request = _request(self.logged)
        decision = policy.decide(request, _view(self.cluster, specs))
        return from_decision(request, decision, self.logged.decided_at_s).decision


class DecisionLog:
    """A ring of the last decisions, and optionally a file with all of them."""

    def __init__(self, policy: str, kept_max: int, path: str = "", lines_max: int = 10_000) -> None:
        self._policy = policy
        self._ring: deque[LogDecision] = deque(maxlen=kept_max)
        self.file: LineFile[LogDecision] = LineFile(path, LineEncoder(policy).encode, lines_max)

    @property
    def wants_views(self) -> bool:
        """Return whether the dispatcher has to record the view of each decision."""
        return self.file.is_wanted

    def add(self, log: LogDecision) -> None:
        """Keep a decision. Costs no more than two appends."""
        self._ring.append(log._replace(cluster=None) if log.cluster is not None else log)
        if self.file.is_wanted:
            self.file.add(log)

    def recent(self, count: int) -> list[DecisionRecord]:
        """Return the last `count` decisions, the newest first."""
        newest = list(self._ring)[-count:] if count > 0 else []
        return [from_log(log, self._policy) for log in reversed(newest)]

    def find(self, request_id: RequestId) -> list[DecisionRecord]:
        """Return the kept decisions about one request, the newest first."""
        found = [log for log in self._ring if log.request.request_id == request_id]
        return [from_log(log, self._policy) for log in reversed(found)]


def encode_line(log: LogDecision, policy: str) -> bytes:
    """Return one line of the log, newline included."""
    return LineEncoder(policy).encode(log)


def decode_line(line: bytes) -> LoggedDecision:
    """Return one line of the log. Raises msgspec.ValidationError if it is none."""
    return msgspec.json.decode(line, type=LoggedDecision)


class LineEncoder:
    """Writes decisions as lines of the log, each a `LoggedDecision`; for one thread.

    What a node taught the router changes far less often than decisions are made, so its text is
    kept: numbers are what takes the time.
    """

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._encode = msgspec.json.Encoder().encode
        self._taught: dict[NodeId, tuple[NodeSpec, bytes]] = {}

    def encode(self, log: LogDecision) -> bytes:
        """Return one line, newline included. Cost: O(nodes + candidates)."""
        logged = self._encode(from_log(log, self._policy))
        view = log.cluster
        if view is None:
            return b'{"logged":%b,"cluster":null}\n' % logged
        cluster = _ClusterText(
            view.now_s,
            [msgspec.Raw(self._node(node)) for node in (*view.prefill, *view.decode)],
            view.report_age_max_s,
            view.decisions,
            view.output_tokens_by_class,
            view.may_hold,
        )
        return b'{"logged":%b,"cluster":%b}\n' % (logged, self._encode(cluster))

    def _node(self, node: NodeView) -> bytes:
        """Return the JSON of a `NodeRecord`; its encoder writes every infinity as null."""
        spec = node.spec
        standing = NodeStanding(
            spec.node_id,
            spec.role,
            node.backlog_prompts,
            node.backlog_tokens,
            node.backlog_token_pairs,
            node.backlog_until_s,
            node.backlog_until_s == inf,
            node.decode_seqs,
            node.kv_used_tokens,
            node.kv_capacity_tokens,
            node.tbt_s_min,
            node.link_until_s,
            node.heard_at_s,
            node.reporting,
            node.usable,
            node.over_budget,
            node.drifting,
        )
        known, taught = self._taught.get(spec.node_id, (None, b""))
        if known is not spec:
            if len(self._taught) >= NODES_KEPT_MAX:  # of nodes that left, nobody tells
                self._taught.clear()
            taught = self._encode(_taught(spec))
            self._taught[spec.node_id] = spec, taught
        return self._encode(standing)[:-1] + b"," + taught[1:]


def _taught(spec: NodeSpec) -> dict[str, object]:
    """Return the fields that `NodeRecord` has beside those of `NodeStanding`."""
    law = spec.profile
    return {
        "step_base_s": law.step_base_s,
        "token_s": law.token_s,
        "decode_seq_s": law.decode_seq_s,
        "kv_token_s": law.kv_token_s,
        "token_pair_s": law.token_pair_s,
        "tbt_margin_frac": spec.tbt_margin_frac,
        "chunk_mode": spec.chunk_mode,
        "chunk_tokens_max": spec.chunk_tokens_max,
    }


def _request(record: DecisionRecord) -> RequestView:
    asked = record.request
    return RequestView(
        request_id=asked.request_id,
        arrival_s=asked.arrival_s,
        prompt_tokens=asked.prompt_tokens,
        output_tokens_max=asked.output_tokens_max,
        slo=Slo(asked.slo_ttft_s, asked.slo_tbt_s),
        class_name=asked.class_name,
        cached_tokens_by_node=tuple(asked.cached_tokens_by_node.items()),
    )


def _view(record: ClusterRecord, specs: dict[NodeId, NodeSpec]) -> ClusterView:
    nodes = [_node(node, specs[node.node_id]) for node in record.nodes]
    return ClusterView(
        now_s=record.now_s,
        prefill=tuple(node for node in nodes if node.spec.role is Role.PREFILL),
        decode=tuple(node for node in nodes if node.spec.role is Role.DECODE),
        report_age_max_s=record.report_age_max_s,
        decisions=record.decisions,
        output_tokens_by_class=record.output_tokens_by_class,
        may_hold=record.may_hold,
    )


def _node(record: NodeRecord, spec: NodeSpec) -> NodeView:
    def known(value_s: float | None, otherwise_s: float) -> float:
        return otherwise_s if value_s is None else value_s

    return NodeView(
        spec=_spec(record, spec),
        backlog_prompts=record.backlog_prompts,
        backlog_tokens=record.backlog_tokens,
        backlog_token_pairs=record.backlog_token_pairs,
        backlog_until_s=inf if record.backlog_endless else known(record.backlog_until_s, -inf),
        decode_seqs=record.decode_seqs,
        kv_used_tokens=record.kv_used_tokens,
        kv_capacity_tokens=record.kv_capacity_tokens,
        tbt_s_min=known(record.tbt_s_min, inf),
        link_until_s=known(record.link_until_s, -inf),
        heard_at_s=known(record.heard_at_s, -inf),
        reporting=record.reporting,
        usable=record.usable,
        over_budget=record.over_budget,
        drifting=record.drifting,
    )


def _spec(record: NodeRecord, configured: NodeSpec) -> NodeSpec:
    """Return the spec as it held when the decision was made."""
    return replace(
        configured,
        profile=replace(
            configured.profile,
            step_base_s=record.step_base_s,
            token_s=record.token_s,
            decode_seq_s=record.decode_seq_s,
            kv_token_s=record.kv_token_s,
            token_pair_s=record.token_pair_s,
        ),
        tbt_margin_frac=record.tbt_margin_frac,
        chunk_mode=record.chunk_mode,
        chunk_tokens_max=record.chunk_tokens_max,
    )
