"""The whole vocabulary between thinking and doing: facts in, orders out.

Named tuples, because a simulated run builds several per request: a frozen dataclass of eight
fields costs about 2.5 µs to build, a named tuple well under one (docs/decisions/001).
All times are seconds on the driver's clock.
"""

from __future__ import annotations

from typing import NamedTuple

from spillway.core.decide import Decision
from spillway.core.types import ChunkMode, ClusterView, NodeId, NodeSpec, RequestId, RequestView

# --- facts -----------------------------------------------------------------------------------


class RequestArrived(NamedTuple):
    """A request passed validation and wants a first token."""

    request: RequestView


class NodeReported(NamedTuple):
    """A node said how it stands. `report` is what it saw at `taken_at_s`."""

    report: NodeState


class PrefillFinished(NamedTuple):
    """The prefill leg answered: the prompt's KV is ready to be pulled."""

    request_id: RequestId


class FirstToken(NamedTuple):
    """The first output token of a request reached the driver."""

    request_id: RequestId


class RequestFinished(NamedTuple):
    """The stream ended as it should. output_tokens: 0 when the driver cannot know."""

    request_id: RequestId
    output_tokens: int = 0


class LegFailed(NamedTuple):
    """The current leg of a request failed on `node_id`.

    refused: the node certainly did not start the work (connection refused, 503 before a byte).
    streaming: bytes had already reached the client, so nothing may be retried.
    kv_lost: the prefilled KV cannot be used again (the prefill node died, or it was consumed).
    declined: the node has more to do than a deflection was decided on (`core.reservation`); what
        it says of itself has been told before.
    """

    request_id: RequestId
    node_id: NodeId
    reason: str
    refused: bool = False
    streaming: bool = False
    kv_lost: bool = False
    declined: bool = False


class ClientLeft(NamedTuple):
    """The client closed its connection before the end."""

    request_id: RequestId


class NodeLost(NamedTuple):
    """The driver found a node dead or not usable. It gets no work until `NodeBack`."""

    node_id: NodeId
    reason: str


class NodeBack(NamedTuple):
    """A lost node answers again, empty."""

    node_id: NodeId


class NodeJoined(NamedTuple):
    """There is another node. It is lost until `NodeBack`; one that is there already is ignored."""

    spec: NodeSpec


class NodeLeft(NamedTuple):
    """A node is no longer part of the cluster. Ignored while a request still depends on it."""

    node_id: NodeId


class ChunkingLearned(NamedTuple):
    """How `node_id` sizes prefill chunks, by its own word; one configured as unknown stays so."""

    node_id: NodeId
    chunk_mode: ChunkMode
    chunk_tokens_max: int


class NodeStrained(NamedTuple):
    """Whether the streams of a node that does not report miss their targets, as their gaps show."""

    node_id: NodeId
    strained: bool


class NodeState(NamedTuple):
    """One node's own word on itself, as of `taken_at_s` on the driver's clock.

    step: the node's step counter. dispatch_seen: the highest dispatch id of this dispatcher that
    the node had received; whatever was dispatched later is not in these figures.
    backlog_*: prefill work queued or running there, from whomever it came.
    tbt_s_min: strictest target among its residents (inf: none).
    over_budget: decode alone exceeds the strictest target.
    gain_decode, gain_prefill, margin: by what its steps have been found to differ from its profile,
        as `core.controller` defines them; 1 for a node that does not say.
    """

    node_id: NodeId
    taken_at_s: float
    step: int
    dispatch_seen: int
    backlog_prompts: int
    backlog_tokens: int
    backlog_token_pairs: float
    decode_seqs: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    tbt_s_min: float
    over_budget: bool = False
    gain_decode: float = 1.0
    gain_prefill: float = 1.0
    margin: float = 1.0


class TimerFired(NamedTuple):
    """The moment of the last `SetTimer` has come."""


Event = (
    RequestArrived
    | NodeReported
    | PrefillFinished
    | FirstToken
    | RequestFinished
    | LegFailed
    | ClientLeft
    | NodeLost
    | NodeBack
    | NodeJoined
    | NodeLeft
    | ChunkingLearned
    | NodeStrained
    | TimerFired
)

# --- orders ----------------------------------------------------------------------------------


class StartPrefill(NamedTuple):
    """Run the prompt on `node_id`; answer PrefillFinished or LegFailed. `dispatch_id` rides along
    so that the node's reports can say which work they already include."""

    request_id: RequestId
    node_id: NodeId
    dispatch_id: int


class StartDecode(NamedTuple):
    """Hand the prefilled request to `node_id`, which pulls the KV from `prefill_node_id`."""

    request_id: RequestId
    node_id: NodeId
    dispatch_id: int
    prefill_node_id: NodeId


class StartDeflected(NamedTuple):
    """Run prompt and decode on `node_id`, in place.

    tbt_s: the target the new stream asks to be protected with.
    chunks: ((chunk_tokens, steps), ...), the schedule to execute literally, or () to let the node
    size every step itself.
    backlog_tokens_max: the most prefill work that may be ahead of it there; UNLIMITED (-1) takes
        any. A driver that knows of other routers has the node grant it first.
    """

    request_id: RequestId
    node_id: NodeId
    dispatch_id: int
    tbt_s: float
    chunks: tuple[tuple[int, int], ...] = ()
    backlog_tokens_max: int = -1


class SetTimer(NamedTuple):
    """Answer `TimerFired` at `at_s`. It replaces a timer that has not fired yet."""

    at_s: float


class AbortOnNode(NamedTuple):
    """Stop whatever `node_id` still does for the request."""

    request_id: RequestId
    node_id: NodeId


class AnswerError(NamedTuple):
    """Tell the client that the request failed. status: the HTTP status, if none was sent yet.

    retry_after_s: by when another try may fare better, as predicted; 0 is not known.
    """

    request_id: RequestId
    status: int
    reason: str
    retry_after_s: float = 0.0


class LogDecision(NamedTuple):
    """A decision was made; `cluster` is a copy taken before it was booked (None: not recorded).

    declined_by: the node that has just declined what was decided before; "" for none.
    """

    request: RequestView
    decision: Decision
    decided_at_s: float
    cluster: ClusterView | None
    declined_by: NodeId = ""


Action = (
    StartPrefill | StartDecode | StartDeflected | AbortOnNode | AnswerError | LogDecision | SetTimer
)
