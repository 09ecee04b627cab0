"""What a policy that only watched would have done, against what happened."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from msgspec.structs import replace

from spillway.core.errors import ConfigError
from spillway.report.explain import explain, print_explanation
from spillway.report.shadow import compare_shadow, print_shadow, read_happened, said
from spillway.wire.decisions import DecisionBody, DecisionRecord, EstimateParts, ShadowRecord


def body(route: str, node: str, total_s: float, reason: str = "static") -> DecisionBody:
    where = "decode_node_id" if route == "deflected" else "prefill_node_id"
    estimate = EstimateParts(execute_s=total_s)
    return DecisionBody(route=route, reason=reason, estimate=estimate, **{where: node})


def about(
    decision: DecisionRecord, name: str, done: DecisionBody, would: DecisionBody
) -> DecisionRecord:
    shadow = ShadowRecord(policy="headroom", decision=would)
    request = replace(decision.request, request_id=name)
    return replace(decision, request=request, decision=done, shadow=shadow, policy="least-loaded")


@pytest.fixture
def four(decision: DecisionRecord) -> list[DecisionRecord]:
    """Two that would have been deflected, one that stays, one that goes to another node."""
    slow = body("prefill", "p0", 2.0)
    deflected = body("deflected", "d0", 0.5, "faster_on_decode")
    return [
        about(decision, "r0", slow, deflected),
        about(decision, "r1", slow, deflected),
        about(decision, "r2", slow, body("prefill", "p0", 2.0, "no_pressure")),
        about(decision, "r3", slow, body("prefill", "p1", 1.0, "faster_on_prefill")),
    ]


def test_requests_are_told_apart_by_what_would_have_been_done(four: list[DecisionRecord]) -> None:
    found = compare_shadow(four, {"r0": 3.0, "r1": 1.0, "r2": 2.2, "r3": 2.2})
    assert found is not None
    assert (found.policy, found.shadow) == ("least-loaded", "headroom")
    kinds = {one.what: one for one in found.tallies}
    assert {what: one.requests for what, one in kinds.items()} == {
        "deflected, not prefill": 2,
        "as it was": 1,
        "prefill, another node": 1,
    }
    moved = kinds["deflected, not prefill"]
    assert (moved.ttft_p50_s, moved.foretold_p95_s, moved.shadow_p95_s) == (2.0, 2.0, 0.5)
    assert (moved.in_time_frac, moved.shadow_in_time_frac) == (0.5, 1.0)
    assert (found.total.requests, found.total.in_time_frac) == (4, 0.25)
    assert found.reasons == {"faster_on_decode": 2, "no_pressure": 1, "faster_on_prefill": 1}
    assert found.forecast_p50_frac == pytest.approx(1.1)


def test_only_the_last_decision_of_a_request_counts(four: list[DecisionRecord]) -> None:
    again = replace(four[0], decision=four[3].decision, shadow=four[2].shadow)
    found = compare_shadow([*four, again], {})
    assert found is not None
    assert found.total.requests == 4
    assert found.reasons["no_pressure"] == 2


def test_a_prediction_counts_from_the_arrival_like_what_happened(
    four: list[DecisionRecord],
) -> None:
    held = replace(four[0], decided_at_s=four[0].request.arrival_s + 3.0)
    found = compare_shadow([held], {})
    assert found is not None
    assert (found.total.foretold_p95_s, found.total.shadow_p95_s) == (5.0, 3.5)


def test_what_is_not_known_is_left_open(four: list[DecisionRecord]) -> None:
    found = compare_shadow(four, {})
    assert found is not None
    assert (found.total.ttft_p50_s, found.forecast_p50_frac) == (None, None)
    assert any("--happened FILE" in line for line in said(found))
    unknown = replace(four[0], shadow=replace(four[0].shadow, decision=_rejected()))  # type: ignore[type-var]
    told = compare_shadow([unknown], {"r0": 1.0})
    assert told is not None
    assert [one.what for one in told.tallies] == ["rejected, not prefill"]
    assert told.total.shadow_p95_s is None
    assert compare_shadow([replace(one, shadow=None) for one in four], {}) is None


def _rejected() -> DecisionBody:
    return DecisionBody(route="rejected", reason="no_node")


def test_the_table_and_its_limits_are_printed(four: list[DecisionRecord]) -> None:
    found = compare_shadow(four, {"r0": 3.0, "r1": 1.0})
    assert found is not None
    stream = io.StringIO()
    print_shadow(found, stream)
    text = stream.getvalue()
    assert text.startswith("In the shadow of least-loaded: headroom\n")
    row = next(line for line in text.splitlines() if line.startswith("deflected, not prefill"))
    assert row.split()[3:] == ["2", "2.000", "2.900", "50.0", "2.000", "0.500", "0.500", "100.0"]
    assert "Each prediction moves one request" in text
    assert max(map(len, text.splitlines())) <= 92


def test_an_explanation_shows_both_ways(four: list[DecisionRecord]) -> None:
    deflected, _, same, other = four
    for record, said_of_it in (
        (deflected, "In the shadow, headroom would have deflected it to d0"),
        (same, "In the shadow, headroom would have done the same"),
        (other, "In the shadow, headroom would have sent it to prefill node p1"),
    ):
        told = explain(record)
        assert told.headline.endswith("went to prefill node p0 by least-loaded")
        assert told.shadow is not None
        assert told.shadow.headline == said_of_it
        stream = io.StringIO()
        print_explanation(record, stream=stream)
        assert said_of_it in stream.getvalue()
    stream = io.StringIO()
    print_explanation(replace(deflected, shadow=None), stream=stream)
    assert "shadow" not in stream.getvalue()


def test_what_happened_is_read_from_records_and_from_the_routers_log(tmp_path: Path) -> None:
    path = tmp_path / "router.log"
    path.write_text(
        '{"time_s": 1, "level": "info", "event": "node_lost", "node": "d0"}\n'
        '{"event": "request", "request_id": "r0", "ttft_s": 0.5, "outcome": "finished"}\n'
        '{"event": "request", "request_id": "r1", "ttft_s": null, "outcome": "failed"}\n'
    )
    assert read_happened(path) == {"r0": 0.5}
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="no request with a first token"):
        read_happened(path)
    path.write_text('{}\n{"ttft_s": "soon"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_happened(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_happened(tmp_path / "none")
