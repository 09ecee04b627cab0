"""What a decision is, and the protocol every policy follows.

A decision explains itself: every candidate with the parts of its estimated TTFT and the reason it
was vetoed or lost, and one sentence for the winner.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import NamedTuple, Protocol, runtime_checkable

from spillway.core.chunks import ChunkPlan
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


class Route(StrEnum):
    """Where the prompt runs."""

    PREFILL = "prefill"
    DEFLECTED = "deflected"
    REJECTED = "rejected"
    HELD = "held"  # nowhere yet: the request waits at the router


class Reason(StrEnum):
    """Why a route was taken, or a candidate not. Metrics count by these words."""

    # of a decision
    STATIC = "static"  # the policy never deflects
    NO_PRESSURE = "no_pressure"  # the prefill path has room
    FASTER_ON_PREFILL = "faster_on_prefill"
    FASTER_ON_DECODE = "faster_on_decode"
    PREFILL_BUSY = "prefill_busy"  # a threshold was crossed
    SHORT_PROMPT = "short_prompt"  # a threshold was not reached
    BEST_SCORE = "best_score"  # by a measure of the policy's own, which guards no token gap
    COLOCATED = "colocated"  # the policy keeps prompt and decode together, always
    NO_SAFE_DECODE_NODE = "no_safe_decode_node"  # every decode node was vetoed
    PREFILL_DOWN = "prefill_down"  # no prefill node is usable
    NO_NODE = "no_node"  # nothing can take the request
    WORTH_WAITING = "worth_waiting"  # of a held request: no node is worth committing to yet
    TOO_LATE = "too_late"  # refused: no path meets its TTFT target
    POLICY_FAILED = "policy_failed"  # the policy raised; the fall-back decided
    # of a veto
    TBT_VETO = "tbt_veto"  # no chunk keeps the residents within their target
    KV_VETO = "kv_veto"  # no room for the prompt's KV
    CAP_VETO = "cap_veto"  # too many deflected prompts there already
    STALE_VETO = "stale_veto"  # the node has been silent for too long, or says too little
    DRIFT_VETO = "drift_veto"  # its steps differ too much from its profile
    TTFT_VETO = "ttft_veto"  # it would miss the request's own target
    NODE_DOWN = "node_down"
    SLOWER = "slower"  # a feasible candidate that lost
    CHOSEN = "chosen"


class TtftEstimate(NamedTuple):
    """Predicted TTFT in parts, seconds; their sum is the total.

    queue: until the prompt's first chunk runs. execute: its own prefill. transfer: KV to the decode
    node, link queue included. admission: further wait until the decode node takes it.
    first_step: the decode step that yields the first token.
    """

    queue_s: float = 0.0
    execute_s: float = 0.0
    transfer_s: float = 0.0
    admission_s: float = 0.0
    first_step_s: float = 0.0

    @property
    def total_s(self) -> float:
        return (
            self.queue_s + self.execute_s + self.transfer_s + self.admission_s + self.first_step_s
        )


class Candidate(NamedTuple):
    """One way to serve the request. `prefill_node_id` is None for a deflection."""

    prefill_node_id: NodeId | None
    decode_node_id: NodeId | None
    estimate: TtftEstimate | None
    verdict: Reason


class Decision(NamedTuple):
    """A choice with its explanation.

    decode_node_id: for a deflection the node that runs everything (of the prefill pool only with
    the reason COLOCATED); for the prefill path the node the estimate assumed, chosen again when the
    prefill is done.
    plan: the chunk schedule of a deflection. execute_plan: the node must follow it literally.
    candidates: every candidate looked at, in the order looked at.
    hold_until_s: of a held request: when the node that it waits for is predicted to be due. The one
        node id that is given then names that node; none at all: nobody behind it may overtake.
    shadow: what a policy that only watches would have done, if there is one (`shadow.py`).
    """

    route: Route
    reason: Reason
    prefill_node_id: NodeId | None = None
    decode_node_id: NodeId | None = None
    estimate: TtftEstimate = TtftEstimate()
    plan: ChunkPlan | None = None
    execute_plan: bool = False
    candidates: tuple[Candidate, ...] = ()
    hold_until_s: float = inf
    shadow: ShadowDecision | None = None


class ShadowDecision(NamedTuple):
    """The choice of a policy that only watches. policy: as it was named, switches included."""

    policy: str
    decision: Decision


class Policy(Protocol):
    """A pure rule: same request and view, same decision. It never writes to the view."""

    @property
    def name(self) -> str: ...

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        """Return where the prompt runs, with every candidate looked at."""
        ...

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        """Return the decode node for a prefilled request, or None when none is usable."""
        ...


@runtime_checkable
class HoldingPolicy(Policy, Protocol):
    """A policy that may answer `Route.HELD` while `cluster.may_hold`: late binding.

    The dispatcher keeps such requests in a line and asks again; see `core/holding.py`.
    """

    def hold_key(self, request: RequestView, cluster: ClusterView) -> float:
        """Return the request's place in the line, smallest first; asked once, when it is held."""
        ...

    def feed_s(self, node: NodeView) -> float:
        """Return the seconds of backlog below which `node` may be given more work."""
        ...
