"""The explanation of a decision: every number in it is one of the decision's own."""

from __future__ import annotations

import io
from typing import Any

import pytest
from msgspec.structs import replace

from report_samples import Sample
from spillway.core.decide import Reason
from spillway.report.explain import (
    CANDIDATES_SHOWN_MAX,
    VERDICTS,
    explain,
    print_explanation,
    way,
)
from spillway.wire.decisions import CandidateRecord, DecisionRecord, EstimateParts

VETOES = {reason.value for reason in Reason if reason.value.endswith("_veto")}


def test_a_deflection_is_explained(decision: DecisionRecord) -> None:
    told = explain(decision)
    assert told.headline == "Request r4 was deflected to d1 by headroom"
    assert told.request == (
        "6,210 prompt tokens, 512 of them cached on d1; targets: first token within 1 s, then a "
        "token every 60 ms"
    )
    assert told.why == (
        "On d1 the first token was predicted after 0.47 s; the best prefill path, p0 → d0, would "
        "have taken 1.65 s, 1.2 s of it in the queue. The prompt runs there in 12 steps of 66 to "
        "512 tokens, none predicted longer than 54 ms, and no KV moves."
    )
    assert told.left_out == 0
    assert told.outcome == ""


def test_the_table_has_every_candidate_with_its_parts(decision: DecisionRecord) -> None:
    rows = [[cell.text for cell in row] for row in explain(decision).candidates.rows]
    assert rows == [
        ["p0 → d0", "slower", "1.200", "0.400", "0.030", "0.000", "0.020", "1.650"],
        ["p1 → d0", "slower", "1.600", "0.400", "0.030", "0.000", "0.020", "2.050"],
        ["deflect to d0", "would break TBT", "–", "–", "–", "–", "–", "–"],
        ["deflect to d1", "chosen", "0.050", "0.400", "0.000", "0.000", "0.020", "0.470"],
    ]
    marked = [cell.text for row in explain(decision).candidates.rows for cell in row if cell.marked]
    assert marked == ["deflect to d1", "0.470"]


def test_what_then_happened_is_told(decision: DecisionRecord, sample: Sample) -> None:
    happened = sample.series[2].records[4]
    assert explain(decision, happened).outcome == (
        "What happened: first token after 0.251 s (predicted: 0.47 s); 0 of its 2 token gaps were "
        "late."
    )
    failed = replace(happened, outcome="failed", ttft_s=None)
    assert explain(decision, failed).outcome.endswith("the request failed without a token.")


@pytest.mark.parametrize(
    ("route", "reason", "said"),
    [
        ("prefill", "static", "This policy sends every prompt to the prefill pool."),
        ("prefill", "no_pressure", "The prefill path had room (predicted wait 1.2 s), so nothing"),
        ("prefill", "faster_on_prefill", "On the prefill path the first token was predicted after"),
        ("prefill", "no_safe_decode_node", "No decode node could take the prompt safely"),
        ("deflected", "prefill_busy", "busier than the policy's threshold (predicted wait 1.2 s)."),
        ("deflected", "short_prompt", "short enough, by the policy's threshold, to be deflected."),
        ("deflected", "prefill_down", "No prefill node was usable. The prompt runs there in 12"),
        ("rejected", "no_node", "No node could take the request."),
        ("prefill", "something_new", "The policy's reason: something_new."),
    ],
)
def test_each_reason_has_its_sentence(
    decision: DecisionRecord, route: str, reason: str, said: str
) -> None:
    body = replace(decision.decision, route=route, reason=reason)
    assert said in explain(replace(decision, decision=body)).why


def test_every_reason_and_verdict_of_core_has_words(decision: DecisionRecord) -> None:
    verdicts = VETOES | {"chosen", "slower", "not_planned", "node_down"}
    assert verdicts == set(VERDICTS)
    for reason in Reason:
        if reason.value not in VERDICTS or reason is Reason.TTFT_VETO:
            body = replace(decision.decision, reason=reason.value)
            assert "The policy's reason" not in explain(replace(decision, decision=body)).why


def test_a_decision_without_candidates_or_estimate_is_explained(decision: DecisionRecord) -> None:
    body = replace(decision.decision, candidates=(), estimate=None, plan=None)
    told = explain(replace(decision, decision=body, policy=""))
    assert told.headline == "Request r4 was deflected to d1"
    assert told.why == "On d1 the first token was predicted to come sooner."
    assert told.candidates.rows == ()


def test_of_many_candidates_the_best_are_shown_and_the_rest_counted(
    decision: DecisionRecord,
) -> None:
    many = [_deflection(f"d{i}", float(100 - i)) for i in range(100)]
    chosen = replace(many[0], verdict="chosen")
    body = replace(decision.decision, candidates=(chosen, *many[1:]))
    told = explain(replace(decision, decision=body))
    shown = [row[0].text for row in told.candidates.rows]
    assert len(shown) == CANDIDATES_SHOWN_MAX
    assert shown == ["deflect to d0", *(f"deflect to d{i}" for i in range(89, 100))]
    assert told.left_out == 100 - CANDIDATES_SHOWN_MAX


def test_the_printed_form_fits_a_terminal(decision: DecisionRecord, sample: Sample) -> None:
    stream = io.StringIO()
    print_explanation(decision, sample.series[2].records[4], stream)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for part in (explain(decision).headline, explain(decision).why, "What happened: first token"):
        assert part in text


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (("p0", "d1"), "p0 → d1"),
        (("p0", None), "p0"),
        ((None, "d1"), "deflect to d1"),
        ((None, None), "nowhere"),
    ],
)
def test_a_way_in_words(nodes: tuple[Any, Any], words: str) -> None:
    assert way(*nodes) == words


def _deflection(node_id: str, queue_s: float) -> CandidateRecord:
    return CandidateRecord(
        prefill_node_id=None,
        decode_node_id=node_id,
        verdict="slower",
        estimate=EstimateParts(queue_s=queue_s),
    )


def test_a_node_that_declined_is_named(decision: DecisionRecord) -> None:
    told = explain(replace(decision, declined_by="d7"))
    assert told.why.startswith("d7 had declined it")
    assert "d7" not in explain(decision).why
