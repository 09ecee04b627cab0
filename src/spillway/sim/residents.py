"""A request as one simulated node knows it, and what a node tells its driver."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import NamedTuple

from spillway.core.prefixes import Chain
from spillway.core.types import RequestId


class Job(NamedTuple):
    """The order a driver gives to a node.

    output_tokens: the true length; only the simulated engine knows it.
    chunks: ((chunk_tokens, steps), ...) to follow literally, or () to let the node size chunks.
    dispatch_id: the dispatcher's number of this order, echoed by `NodeState.dispatch_seen`.
    blocks: chain of the prompt's full leading blocks of `block_tokens` tokens (`core.prefixes`).
    """

    request_id: RequestId
    prompt_tokens: int
    output_tokens: int = 1
    slo_tbt_s: float = inf
    dispatch_id: int = 0
    chunks: tuple[tuple[int, int], ...] = ()
    blocks: Chain = ()
    block_tokens: int = 0


class Phase(IntEnum):
    """Where a request stands on a node."""

    QUEUED = 0  # its prompt waits (again, after a preemption)
    PREFILLING = 1  # KV room booked, chunks run
    ARRIVED = 2  # prefilled elsewhere; it waits for KV room
    PULLING = 3  # KV room booked, its KV is on the way
    LANDED = 4  # its KV is here; it joins the batch at the next step
    DECODING = 5
    HELD = 6  # prefilled; its KV waits to be pulled by a decode node
    GONE = 7


# As plain globals, because looking a member up in its enum costs a step's worth of arithmetic.
QUEUED, PREFILLING, ARRIVED, PULLING, LANDED, DECODING, HELD, GONE = Phase


class Target:
    """One TBT target of the decode batch and how many steps have exceeded it so far."""

    __slots__ = ("late_steps", "seqs", "tbt_s")

    def __init__(self, tbt_s: float) -> None:
        self.tbt_s = tbt_s
        self.seqs = 0
        self.late_steps = 0


class Resident:
    """A request on a node: its order, progress, timings and token gaps.

    local: it decodes here after its prefill; False for the prefill leg of another node's decode.
    computed_tokens, target_tokens: prefill progress, what was found in the cache included; the
        target grows by what a preempted request had generated. held_blocks: leading blocks of its
        job that it shares with others, or could. generated_tokens: tokens emitted as of
        `join_step` (exact once it left).
    *_s: None until it happened. started_s: its first chunk began. prefill_done_s: its last chunk
        ended. pull_s, kv_arrived_s, admitted_s: pulled requests only: room was booked, the KV had
        come, it joined the batch. last_token_s, gap*: current once it has left the batch.
    """

    __slots__ = (
        "admitted_s",
        "chunk_steps_done",
        "computed_tokens",
        "doomed",
        "finish_step",
        "first_token_s",
        "gap_max_s",
        "gaps_late",
        "generated_tokens",
        "held_blocks",
        "job",
        "join_step",
        "kv_arrived_s",
        "last_token_s",
        "late_before",
        "local",
        "order",
        "output_tokens",
        "phase",
        "preemptions",
        "prefill_done_s",
        "prompt_tokens",
        "pull_s",
        "request_id",
        "started_s",
        "target",
        "target_tokens",
    )

    def __init__(self, job: Job, order: int, phase: Phase, local: bool) -> None:
        prompt_tokens = job.prompt_tokens
        self.job = job
        self.request_id = job.request_id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = job.output_tokens
        self.order = order
        self.phase = phase
        self.local = local
        self.doomed = False
        self.computed_tokens = 0
        self.held_blocks = 0
        self.target_tokens = prompt_tokens
        self.generated_tokens = 0
        self.chunk_steps_done = 0
        self.join_step = 0
        self.finish_step = -1
        self.late_before = 0
        self.target: Target | None = None
        self.gaps_late = 0
        self.gap_max_s = 0.0
        self.preemptions = 0
        self.started_s: float | None = None
        self.prefill_done_s: float | None = None
        self.pull_s: float | None = None
        self.kv_arrived_s: float | None = None
        self.admitted_s: float | None = None
        self.first_token_s: float | None = None
        self.last_token_s: float | None = None

    @property
    def remaining_tokens(self) -> int:
        """Prompt tokens (after a preemption also generated ones) still to be computed."""
        return self.target_tokens - self.computed_tokens


@dataclass(slots=True)
class PrefillDone:
    """The last token of a prefill-leg prompt was computed; its KV is held until `release_kv`."""

    resident: Resident
    at_s: float


@dataclass(slots=True)
class PullStarted:
    """There is room for a prompt that was prefilled elsewhere: its KV may come (`kv_arrived`)."""

    resident: Resident
    at_s: float


@dataclass(slots=True)
class FirstTokenAt:
    """A request emitted its first token."""

    resident: Resident
    at_s: float


@dataclass(slots=True)
class Tokens:
    """A request emitted `tokens` tokens, its first included. Only from a per-token node."""

    resident: Resident
    at_s: float
    tokens: int


@dataclass(slots=True)
class Finished:
    """A request emitted its last token and left; its timings and gaps are final."""

    resident: Resident
    at_s: float


@dataclass(slots=True)
class Preempted:
    """A request lost its KV for want of room and will be prefilled again here."""

    resident: Resident
    at_s: float


Outcome = PrefillDone | PullStarted | FirstTokenAt | Tokens | Finished | Preempted
