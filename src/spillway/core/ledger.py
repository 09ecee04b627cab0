"""What each node is believed to be doing: its last report, plus what was sent to it since.

Two sources per node. The *own* book sums what this dispatcher has outstanding there; alone it
serves a stock engine that reports nothing. A *report* is the node's own word on everything,
other dispatchers' work included, but it is old: it knows nothing of the dispatches above its
`dispatch_seen`. The view is report + unseen, or the own book while there is no report. Each
change rewrites the node's one live `NodeView`, at the latest when a decision asks for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from math import inf

from spillway.core.calibration import Calibration
from spillway.core.chunks import drain_s
from spillway.core.errors import InvariantViolation
from spillway.core.events import NodeState
from spillway.core.latency import prefill_s, token_pairs
from spillway.core.lengths import OutputLengths
from spillway.core.types import (
    ChunkMode,
    ClusterView,
    NodeId,
    NodeSpec,
    NodeView,
    RequestView,
    Role,
)

# Below this many, dispatches that have ended may stay in line until their turn.
UNSEEN_MIN = 64


class Entry:
    """One dispatch: what it adds to a node until it ends."""

    __slots__ = ("decoding", "dispatch_id", "kv_tokens", "pairs", "tbt_s", "tokens", "unseen")

    def __init__(
        self, dispatch_id: int, tokens: int, pairs: float, kv_tokens: int, tbt_s: float
    ) -> None:
        self.dispatch_id = dispatch_id
        self.tokens = tokens  # prefill work; 0 for a request whose KV is pulled
        self.pairs = pairs
        self.kv_tokens = kv_tokens
        self.tbt_s = tbt_s  # target to protect; inf for prefill-only work
        self.decoding = False
        self.unseen = True  # no report includes it yet


class NodeLedger:
    """The book of one node. Every method that changes it leaves `view` up to date."""

    __slots__ = (
        "_all_behind",
        "_behind",
        "_joining_kv_tokens",
        "_joining_seqs",
        "_own",
        "_own_decode_seqs",
        "_own_kv_tokens",
        "_own_pairs",
        "_own_prompts",
        "_own_tbt_s",
        "_own_tokens",
        "_report",
        "_tbt_counts",
        "_unseen",
        "_unseen_pairs",
        "_unseen_prompts",
        "_unseen_tokens",
        "_view",
        "calibration",
        "spec",
    )

    def __init__(
        self, spec: NodeSpec, all_behind: list[NodeLedger], *, calibrated: bool = True
    ) -> None:
        self.spec = spec
        self.calibration = Calibration(spec) if calibrated else None
        self._all_behind = all_behind  # the ledger's list of nodes whose view is behind
        self._behind = False
        self._view = NodeView(spec=spec, kv_capacity_tokens=spec.kv_capacity_tokens)
        self._report: NodeState | None = None
        self._own: dict[int, Entry] = {}
        self._own_prompts = self._own_tokens = self._own_decode_seqs = self._own_kv_tokens = 0
        self._own_pairs = 0.0
        self._unseen: deque[Entry] = deque()
        self._unseen_prompts = self._unseen_tokens = 0
        self._unseen_pairs = 0.0
        self._joining_seqs = self._joining_kv_tokens = 0
        self._tbt_counts: dict[float, int] = {}
        self._own_tbt_s = inf  # the least of them

    @property
    def view(self) -> NodeView:
        """Return the node's one live view, brought up to date."""
        if self._behind:
            self.refresh()
        return self._view

    def restarted(self) -> None:
        """Forget what the node said before it was lost; bookings end by their own facts."""
        self._report = None
        view = self._view
        view.reporting = view.over_budget = False
        view.heard_at_s = view.backlog_until_s = view.link_until_s = -inf
        view.kv_capacity_tokens = self.spec.kv_capacity_tokens
        self.refresh()

    def learn_chunking(self, mode: ChunkMode, chunk_tokens_max: int) -> None:
        """Believe what the node says of its chunks, unless an operator has forbidden deflection."""
        if self.spec.chunk_mode is ChunkMode.UNKNOWN:
            return
        self.spec = replace(self.spec, chunk_mode=mode, chunk_tokens_max=chunk_tokens_max)
        self._view.spec = self.spec
        if self.calibration is not None:
            self.calibration.learn_chunking(mode, chunk_tokens_max)

    @property
    def outstanding(self) -> int:
        """Return how many dispatches have not ended."""
        return len(self._own)

    def add_prefill(self, entry: Entry, now_s: float, execute_s: float) -> None:
        """Book a prompt that runs here: `execute_s` is what it adds to the backlog."""
        self._own[entry.dispatch_id] = entry
        self._unseen.append(entry)
        tokens, pairs = entry.tokens, entry.pairs
        self._own_prompts += 1
        self._own_tokens += tokens
        self._own_pairs += pairs
        self._unseen_prompts += 1
        self._unseen_tokens += tokens
        self._unseen_pairs += pairs
        self._own_kv_tokens += entry.kv_tokens
        if entry.tbt_s != inf:
            self._protect(entry.tbt_s)
        view = self._view
        from_s = view.backlog_until_s
        view.backlog_until_s = (from_s if from_s > now_s else now_s) + execute_s
        if not self._behind:
            self._fall_behind()

    def add_decode(self, entry: Entry) -> None:
        """Book a request whose KV this node pulls; it counts as a stream from now on."""
        self._own[entry.dispatch_id] = entry
        self._unseen.append(entry)
        self._joining_seqs += 1
        self._joining_kv_tokens += entry.kv_tokens
        self._own_decode_seqs += 1
        self._own_kv_tokens += entry.kv_tokens
        if entry.tbt_s != inf:
            self._protect(entry.tbt_s)
        if not self._behind:
            self._fall_behind()

    def first_token(self, entry: Entry, now_s: float) -> None:
        """The request decodes from here on: its prefill work, or its pull, is over."""
        if entry.decoding:
            return
        entry.decoding = True
        if entry.tokens:  # a stream whose KV was pulled has counted as one all along
            self._end_prefill(entry, now_s)
            self._own_decode_seqs += 1
            if not self._behind:
                self._fall_behind()

    def end(self, entry: Entry, now_s: float) -> None:
        """The dispatch is over, however it ended. Raises InvariantViolation if not booked here."""
        if self._own.pop(entry.dispatch_id, None) is None:
            raise InvariantViolation(
                f"dispatch {entry.dispatch_id} is not booked on {self.spec.node_id}"
            )
        if entry.tokens and not entry.decoding:
            self._end_prefill(entry, now_s)
        else:
            self._own_decode_seqs -= 1
            if entry.unseen:
                self._see(entry)
                self._forget_seen()
        self._own_kv_tokens -= entry.kv_tokens
        tbt_s = entry.tbt_s
        if tbt_s != inf:
            left = self._tbt_counts[tbt_s] - 1
            if left:
                self._tbt_counts[tbt_s] = left
            else:
                del self._tbt_counts[tbt_s]
                self._own_tbt_s = min(self._tbt_counts, default=inf)
        if not self._behind:
            self._fall_behind()

    def report(self, state: NodeState) -> bool:
        """Replace the base by the node's own word; keep what it cannot know yet.

        Returns False, changing nothing, for a report that a later one has overtaken.
        """
        if self._report is not None and state.taken_at_s < self._report.taken_at_s:
            return False
        self._report = state
        while self._unseen and self._unseen[0].dispatch_id <= state.dispatch_seen:
            entry = self._unseen.popleft()
            if entry.unseen:
                self._see(entry)
        view = self._view
        view.heard_at_s = state.taken_at_s
        view.reporting = True
        view.over_budget = state.over_budget
        if self.calibration is not None:
            self.calibration.hear(state)
            view.spec = self.spec = self.calibration.spec
            view.drifting = self.calibration.red
        if state.kv_capacity_tokens:
            view.kv_capacity_tokens = state.kv_capacity_tokens
        self.refresh()
        view.backlog_until_s = state.taken_at_s + self._drain_s(
            view.backlog_tokens, view.backlog_token_pairs
        )
        return True

    def _protect(self, tbt_s: float) -> None:
        self._tbt_counts[tbt_s] = self._tbt_counts.get(tbt_s, 0) + 1
        if tbt_s < self._own_tbt_s:
            self._own_tbt_s = tbt_s

    def _end_prefill(self, entry: Entry, now_s: float) -> None:
        self._own_prompts -= 1
        self._own_tokens -= entry.tokens
        self._own_pairs -= entry.pairs
        if not self._own_prompts:
            self._own_pairs = 0.0  # sums of floats drift; an empty book has no remainder
        if entry.unseen:
            self._see(entry)
            self._forget_seen()
        if self._report is None:
            self._view.backlog_until_s = now_s + self._drain_s(self._own_tokens, self._own_pairs)

    def _see(self, entry: Entry) -> None:
        """Count a dispatch no longer on top of the report: it is in it, or over."""
        entry.unseen = False
        if entry.tokens:
            self._unseen_prompts -= 1
            self._unseen_tokens -= entry.tokens
            self._unseen_pairs -= entry.pairs
        else:
            self._joining_seqs -= 1
            self._joining_kv_tokens -= entry.kv_tokens

    def _forget_seen(self) -> None:
        unseen = self._unseen
        while unseen and not unseen[0].unseen:
            unseen.popleft()
        # A node that never reports would keep whatever ended behind one long stream.
        if len(unseen) > UNSEEN_MIN + 2 * (self._unseen_prompts + self._joining_seqs):
            self._unseen = deque(entry for entry in unseen if entry.unseen)

    def _drain_s(self, tokens: int, pairs: float) -> float:
        if tokens <= 0:
            return 0.0
        spec, view = self.spec, self.view
        if spec.role is Role.PREFILL:
            return prefill_s(spec.profile, tokens, pairs, spec.step_tokens_max)
        is_fixed = spec.chunk_mode is ChunkMode.STATIC  # whatever the streams can bear
        return drain_s(
            spec.profile,
            view.decode_seqs,
            view.kv_used_tokens,
            tokens,
            pairs,
            inf if is_fixed else view.tbt_s_min * spec.tbt_margin_frac,
            spec.chunk_tokens_max,
            1 if is_fixed else spec.chunk_tokens_multiple,
        )

    def _fall_behind(self) -> None:
        """Note that the view is behind: facts between two decisions share one refresh."""
        self._behind = True
        self._all_behind.append(self)

    def refresh(self) -> None:
        """Bring the view up to date with the books."""
        self._behind = False
        view, said = self._view, self._report
        tbt_s = self._own_tbt_s
        if said is None:
            view.backlog_prompts = self._own_prompts
            view.backlog_tokens = self._own_tokens
            view.backlog_token_pairs = self._own_pairs
            view.decode_seqs = self._own_decode_seqs
            view.kv_used_tokens = self._own_kv_tokens
            view.tbt_s_min = tbt_s
            return
        view.backlog_prompts = said.backlog_prompts + self._unseen_prompts
        view.backlog_tokens = said.backlog_tokens + self._unseen_tokens
        view.backlog_token_pairs = said.backlog_token_pairs + self._unseen_pairs
        # The own book is a floor: a node counts a stream, and its KV, only once it is admitted.
        seqs = said.decode_seqs + self._joining_seqs
        view.decode_seqs = seqs if seqs > self._own_decode_seqs else self._own_decode_seqs
        # Promised as well as resident: the rest of every prompt under way will need its room.
        kv_tokens = said.kv_used_tokens + self._joining_kv_tokens + view.backlog_tokens
        view.kv_used_tokens = kv_tokens if kv_tokens > self._own_kv_tokens else self._own_kv_tokens
        view.tbt_s_min = tbt_s if tbt_s < said.tbt_s_min else said.tbt_s_min


class Ledger:
    """Every node's book, and the cluster view that policies read."""

    __slots__ = ("_behind", "_calibrated", "_view", "lengths", "nodes")

    def __init__(
        self, specs: Iterable[NodeSpec], *, report_age_max_s: float, calibrated: bool = True
    ) -> None:
        ordered = sorted(specs, key=lambda spec: spec.node_id)
        self._behind: list[NodeLedger] = []
        self._calibrated = calibrated
        self.nodes: dict[NodeId, NodeLedger] = {
            spec.node_id: NodeLedger(spec, self._behind, calibrated=calibrated) for spec in ordered
        }
        self.lengths = OutputLengths()
        self._view = ClusterView(
            prefill=(),
            decode=(),
            report_age_max_s=report_age_max_s,
            output_tokens_by_class=self.lengths.by_class,
        )
        self._seat()

    def join(self, spec: NodeSpec) -> None:
        """Open a book for one more node, which is not usable yet."""
        node = NodeLedger(spec, self._behind, calibrated=self._calibrated)
        node.view.usable = False
        self.nodes[spec.node_id] = node
        self._seat()

    def leave(self, node_id: NodeId) -> None:
        """Close the book of a node. Raises InvariantViolation while anything is booked there."""
        if self.nodes[node_id].outstanding:
            raise InvariantViolation(f"{node_id} leaves with work outstanding")
        del self.nodes[node_id]
        self._seat()

    def _seat(self) -> None:
        """Put the nodes' views where policies see them, in order of their ids."""
        ordered = sorted(self.nodes.items())
        self.nodes.clear()
        self.nodes.update(ordered)
        views = [node.view for node in self.nodes.values()]
        self._view.prefill = tuple(view for view in views if view.spec.role is Role.PREFILL)
        self._view.decode = tuple(view for view in views if view.spec.role is Role.DECODE)

    def cluster(
        self, now_s: float, decisions: int, without: frozenset[NodeId] = frozenset()
    ) -> ClusterView:
        """Return the live view, less the nodes in `without`. O(1) when there are none."""
        if self._behind:
            for node in self._behind:
                node.refresh()
            self._behind.clear()
        view = self._view
        if without:
            view = replace(
                view,
                prefill=tuple(n for n in view.prefill if n.spec.node_id not in without),
                decode=tuple(n for n in view.decode if n.spec.node_id not in without),
            )
        view.now_s = now_s
        view.decisions = decisions
        return view


def frozen_copy(cluster: ClusterView) -> ClusterView:
    """Return a copy that later events do not change: what a decision log keeps."""
    return ClusterView(
        now_s=cluster.now_s,
        prefill=tuple([node.copied() for node in cluster.prefill]),
        decode=tuple([node.copied() for node in cluster.decode]),
        report_age_max_s=cluster.report_age_max_s,
        decisions=cluster.decisions,
        may_hold=cluster.may_hold,
        output_tokens_by_class=cluster.output_tokens_by_class.copy(),
    )


def prefill_entry(dispatch_id: int, request: RequestView, node_id: NodeId, tbt_s: float) -> Entry:
    """Return the entry of a prompt that runs on `node_id`. tbt_s: inf on a prefill node."""
    tokens = request.uncached_tokens(node_id)
    pairs = token_pairs(tokens, request.prompt_tokens - tokens)
    return Entry(dispatch_id, tokens, pairs, request.prompt_tokens, tbt_s)


def decode_entry(dispatch_id: int, request: RequestView) -> Entry:
    """Return the entry of a request whose KV is pulled."""
    return Entry(dispatch_id, 0, 0.0, request.prompt_tokens, request.slo.tbt_s)
