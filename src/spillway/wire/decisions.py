"""One decision as JSON: what `/debug/decisions` shows and `spillway explain` reads.

The same facts as `core.decide.Decision`, with the request they were about; a person or a program
can see every candidate, the parts of its estimate and why it was taken or not.
"""

from __future__ import annotations

from math import isfinite

import msgspec

from spillway.core.decide import Candidate, Decision, TtftEstimate
from spillway.core.events import LogDecision
from spillway.core.types import RequestView

DECISION_VERSION = 1


class EstimateParts(msgspec.Struct, frozen=True):
    """Predicted TTFT in parts, seconds; they add up to `total_s`."""

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


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The chunk schedule of a deflection: chunks of (chunk_tokens, steps), in order."""

    chunks: tuple[tuple[int, int], ...]
    execute_s: float
    step_s_max: float


class CandidateRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One way that was looked at. `estimate`: None when it was ruled out before one was made."""

    prefill_node_id: str | None
    decode_node_id: str | None
    verdict: str
    estimate: EstimateParts | None = None


class DecidedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the policy knew of the request. cached_tokens_by_node: prompt tokens held there."""

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens_max: int
    slo_ttft_s: float
    slo_tbt_s: float
    class_name: str = "default"
    cached_tokens_by_node: dict[str, int] = {}


class DecisionBody(msgspec.Struct, frozen=True, kw_only=True):
    """The choice. route, reason and verdicts are the words of `core.decide`."""

    route: str
    reason: str
    prefill_node_id: str | None = None
    decode_node_id: str | None = None
    estimate: EstimateParts | None = None
    plan: PlanRecord | None = None
    candidates: tuple[CandidateRecord, ...] = ()


class ShadowRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy that only watched would have done instead."""

    policy: str
    decision: DecisionBody


class DecisionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One decided request. decided_at_s: on the driver's clock, like `request.arrival_s`.

    shadow: None unless a second policy looked on.
    declined_by: the node that would not take what was decided on this request just before.
    """

    request: DecidedRequest
    decision: DecisionBody
    decided_at_s: float
    policy: str = ""
    shadow: ShadowRecord | None = None
    declined_by: str = ""
    version: int = DECISION_VERSION


def from_log(log: LogDecision, policy: str = "") -> DecisionRecord:
    """Return the record of a dispatcher's LogDecision order."""
    record = from_decision(log.request, log.decision, log.decided_at_s, policy)
    if not log.declined_by:
        return record
    return msgspec.structs.replace(record, declined_by=log.declined_by)


def from_decision(
    request: RequestView, decision: Decision, decided_at_s: float, policy: str = ""
) -> DecisionRecord:
    """Return the record of one decision. Cost: O(candidates), so not for the hot path."""
    shadow = decision.shadow
    return DecisionRecord(
        request=DecidedRequest(
            request_id=request.request_id,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            output_tokens_max=request.output_tokens_max,
            slo_ttft_s=request.slo.ttft_s,
            slo_tbt_s=request.slo.tbt_s,
            class_name=request.class_name,
            cached_tokens_by_node=dict(request.cached_tokens_by_node),
        ),
        decision=_body(decision),
        decided_at_s=decided_at_s,
        policy=policy,
        shadow=shadow and ShadowRecord(policy=shadow.policy, decision=_body(shadow.decision)),
    )


def _body(decision: Decision) -> DecisionBody:
    plan = decision.plan
    return DecisionBody(
        route=decision.route.value,
        reason=decision.reason.value,
        prefill_node_id=decision.prefill_node_id,
        decode_node_id=decision.decode_node_id,
        estimate=_parts(decision.estimate),
        plan=plan
        and PlanRecord(chunks=plan.chunks, execute_s=plan.execute_s, step_s_max=plan.step_s_max),
        candidates=tuple(map(_candidate, decision.candidates)),
    )


def _candidate(candidate: Candidate) -> CandidateRecord:
    return CandidateRecord(
        prefill_node_id=candidate.prefill_node_id,
        decode_node_id=candidate.decode_node_id,
        verdict=candidate.verdict.value,
        estimate=_parts(candidate.estimate),
    )


def _parts(estimate: TtftEstimate | None) -> EstimateParts | None:
    # JSON has no infinity; an estimate that is not finite says no more than its absence.
    if estimate is None or not isfinite(estimate.total_s):
        return None
    return EstimateParts(*estimate)
