"""A decision on the wire: nothing is lost on the way from core to JSON and back."""

from __future__ import annotations

from math import inf

import msgspec

from builders import make_request
from spillway.core.chunks import ChunkPlan
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.events import LogDecision
from spillway.wire.decisions import DecisionRecord, EstimateParts, from_decision, from_log

ESTIMATE = TtftEstimate(0.1, 0.2, 0.03, 0.004, 0.005)
DECISION = Decision(
    Route.DEFLECTED,
    Reason.FASTER_ON_DECODE,
    decode_node_id="d1",
    estimate=ESTIMATE,
    plan=ChunkPlan(((512, 3), (64, 1)), 0.2, 0.05),
    candidates=(
        Candidate("p0", "d0", ESTIMATE, Reason.SLOWER),
        Candidate(None, "d0", None, Reason.TBT_VETO),
        Candidate(None, "d1", ESTIMATE, Reason.CHOSEN),
    ),
)


def test_every_fact_of_a_decision_is_in_its_record() -> None:
    request = make_request(
        "r7", arrival_s=3.0, ttft_s=0.5, tbt_s=0.04, cached_tokens_by_node=(("d1", 256),)
    )
    record = from_log(LogDecision(request, DECISION, 3.25, None), "headroom")
    assert msgspec.to_builtins(record) == {
        "request": {
            "request_id": "r7",
            "arrival_s": 3.0,
            "prompt_tokens": 2000,
            "output_tokens_max": 100,
            "slo_ttft_s": 0.5,
            "slo_tbt_s": 0.04,
            "class_name": "default",
            "cached_tokens_by_node": {"d1": 256},
        },
        "decision": {
            "route": "deflected",
            "reason": "faster_on_decode",
            "prefill_node_id": None,
            "decode_node_id": "d1",
            "estimate": _parts(),
            "plan": {"chunks": ((512, 3), (64, 1)), "execute_s": 0.2, "step_s_max": 0.05},
            "candidates": (
                _candidate("p0", "d0", "slower", _parts()),
                _candidate(None, "d0", "tbt_veto", None),
                _candidate(None, "d1", "chosen", _parts()),
            ),
        },
        "decided_at_s": 3.25,
        "policy": "headroom",
        "shadow": None,
        "declined_by": "",
        "version": 1,
    }


def test_a_record_survives_json() -> None:
    record = from_decision(make_request(), DECISION, 0.0)
    assert msgspec.json.decode(msgspec.json.encode(record), type=DecisionRecord) == record


def test_the_parts_add_up() -> None:
    record = from_decision(make_request(), DECISION, 0.0)
    assert record.decision.estimate is not None
    assert record.decision.estimate.total_s == ESTIMATE.total_s
    assert EstimateParts().total_s == 0.0


def test_an_estimate_without_end_is_none_because_json_has_no_infinity() -> None:
    endless = DECISION._replace(estimate=TtftEstimate(queue_s=inf), plan=None, candidates=())
    record = from_decision(make_request(), endless, 0.0)
    assert record.decision.estimate is None
    assert record.decision.plan is None
    assert msgspec.json.decode(msgspec.json.encode(record), type=DecisionRecord) == record


def _parts() -> dict[str, float]:
    return {
        "queue_s": 0.1,
        "execute_s": 0.2,
        "transfer_s": 0.03,
        "admission_s": 0.004,
        "first_step_s": 0.005,
    }


def _candidate(
    prefill: str | None, decode: str, verdict: str, estimate: dict[str, float] | None
) -> dict[str, object]:
    return {
        "prefill_node_id": prefill,
        "decode_node_id": decode,
        "verdict": verdict,
        "estimate": estimate,
    }
