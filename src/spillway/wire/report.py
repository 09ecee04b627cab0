"""What an engine says of itself: one JSON object per line on `GET /spillway/reports`.

An engine sends a report when something changed, at most every 20 ms, and a heartbeat every 250 ms.
A report says which dispatches it already includes (`dispatch_seen`), so that the router's ledger
can add exactly the work that was sent later. Documented for engine authors in docs/wire.md.
"""

from __future__ import annotations

from math import inf
from typing import Annotated

import msgspec

from spillway.core.errors import NodeError
from spillway.core.events import NodeState
from spillway.core.types import ChunkMode, Role

REPORT_VERSION = 1
REPORTS_PATH = "/spillway/reports"
DISPATCH_HEADER = "x-spillway-dispatch"
CHUNKS_HEADER = "x-spillway-chunks"
TTFT_HEADER = "x-slo-ttft-ms"
TBT_HEADER = "x-slo-tbt-ms"
STEPS_MAX = 64  # per report; an engine that takes more between two reports leaves out the oldest

Count = Annotated[int, msgspec.Meta(ge=0)]
Amount = Annotated[float, msgspec.Meta(ge=0)]


class StepTaken(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """One engine step that is over: what it computed, and what that cost. A JSON array on the wire.

    step: its number, as the report's `step` counts them.
    decode_seqs, kv_tokens: sequences that got a token without prefill, and the KV tokens that they
        held before the step.
    prefill_tokens, prefill_token_pairs: of all prompt chunks in the step, summed.
    actual_s: wall-clock time, from this step's start to the next one's while there is work.
    predicted_s, cpu_s: what the engine expected, and processor time of its thread; 0: not known.
    budget_s: the time, in terms of the profile, that its prompt chunks were sized to fill; 0: they
        were not sized.
    """

    step: Count
    decode_seqs: Count
    kv_tokens: Count
    prefill_tokens: Count
    prefill_token_pairs: Amount
    actual_s: Amount
    predicted_s: Amount = 0.0
    cpu_s: Amount = 0.0
    budget_s: Amount = 0.0


class NodeReport(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """How one node stands. Counts are of the moment the report was made.

    seq: rises by one with every report of one connection; starts anywhere.
    step: the engine's step counter.
    dispatch_seen: per router id, the highest dispatch id received from that router.
    backlog_*: prefill work queued or running: prompts, their remaining uncached tokens, and the
        (token, attended token) pairs these still have to compute (`core.latency.token_pairs`).
    tbt_s_min: strictest target among the residents; None when there is none.
    over_budget: the decodes alone already exceed that target.
    last_step_*_s: what the engine predicted for its last step and what it took; 0 when unknown.
    recent_steps: the steps since the report before, oldest first, at most STEPS_MAX; a gap in
        their numbers says that some are missing. Empty from an engine that does not keep them.
    chunk_mode, chunk_tokens_max: how prefill chunks are sized there, and their largest size;
        0 means that the engine does not say.
    routers: how many routers listen; with more than one, each asks the node before it deflects
        (`wire.reserve`). What was granted and has not come yet is in `backlog_*`.
    releases: held KV that nobody will fetch can be freed before its lease ends (`wire.release`).

    What only a plug-in in a real engine knows; the router decides without it:
    boot_id: another one after every start of the engine.
    backlog_tokens_running: the part of `backlog_tokens` that belongs to prompts already begun.
    pulling_seqs: requests whose KV is on its way from a prefill node, or waits to be fetched.
    chunk_tokens_now: the chunk that a fresh prompt would get beside the present batch; 0: none.
    gain_decode, gain_prefill, margin: by what the engine corrects its profile's predictions.
    errors, fault: how often the plug-in failed, and why it only reports; "" while it acts.
    KV free is `kv_capacity_tokens - kv_used_tokens`.
    """

    node_id: str
    role: Role
    seq: Count
    step: Count
    backlog_prompts: Count
    backlog_tokens: Count
    backlog_token_pairs: Amount
    decode_seqs: Count
    kv_used_tokens: Count
    kv_capacity_tokens: Count
    dispatch_seen: dict[str, Count] = {}
    tbt_s_min: Amount | None = None
    over_budget: bool = False
    last_step_predicted_s: Amount = 0.0
    last_step_actual_s: Amount = 0.0
    recent_steps: tuple[StepTaken, ...] = ()
    chunk_mode: ChunkMode = ChunkMode.UNKNOWN
    chunk_tokens_max: Count = 0
    routers: Count = 1
    releases: bool = False
    boot_id: str = ""
    backlog_tokens_running: Count = 0
    pulling_seqs: Count = 0
    chunk_tokens_now: Count = 0
    gain_decode: Amount = 1.0
    gain_prefill: Amount = 1.0
    margin: Amount = 1.0
    errors: Count = 0
    fault: str = ""
    version: Annotated[int, msgspec.Meta(ge=1, le=REPORT_VERSION)] = REPORT_VERSION


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(NodeReport)


def encode(report: NodeReport) -> bytes:
    """Return the report as one JSON line, newline included. About 1 µs."""
    return _ENCODER.encode(report) + b"\n"


def decode(line: bytes | bytearray | memoryview) -> NodeReport:
    """Return the report of one line.

    Raises NodeError when the line is not a report of a version this program knows, naming the
    field and what is wrong with it.
    """
    try:
        return _DECODER.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError(f"not a node report of version {REPORT_VERSION}: {error}") from error


def to_state(report: NodeReport, received_at_s: float, router_id: str) -> NodeState:
    """Return the report as the core sees it, dated by the receiver's clock.

    Clocks of two machines are not comparable, so the time of receipt stands for the time taken;
    the error is the network's delay. Only this router's dispatch ids are kept.
    """
    return NodeState(
        node_id=report.node_id,
        taken_at_s=received_at_s,
        step=report.step,
        dispatch_seen=report.dispatch_seen.get(router_id, 0),
        backlog_prompts=report.backlog_prompts,
        backlog_tokens=report.backlog_tokens,
        backlog_token_pairs=report.backlog_token_pairs,
        decode_seqs=report.decode_seqs,
        kv_used_tokens=report.kv_used_tokens,
        kv_capacity_tokens=report.kv_capacity_tokens,
        tbt_s_min=inf if report.tbt_s_min is None else report.tbt_s_min,
        over_budget=report.over_budget,
        gain_decode=report.gain_decode,
        gain_prefill=report.gain_prefill,
        margin=report.margin,
    )
