"""The Gantt view."""

from __future__ import annotations

import pytest

from spillway.report.gantt import gantt
from spillway.report.plots import inline_svg
from spillway.wire.timeline import Span, Timeline, Waiting


def timeline(policy: str, deflected_tokens: int) -> Timeline:
    prefill = Span(
        node_id="p0",
        start_s=1.0,
        end_s=1.2,
        steps=2,
        decode_seqs=0,
        prefill_tokens=300,
        deflected_tokens=0,
    )
    decode = Span(
        node_id="d0",
        start_s=1.0,
        end_s=1.5,
        steps=10,
        decode_seqs=4,
        prefill_tokens=0,
        deflected_tokens=deflected_tokens,
    )
    return Timeline(
        policy=policy,
        from_s=1.0,
        to_s=2.0,
        node_ids=("p0", "d0"),
        spans=(prefill, decode),
        waiting=(Waiting(from_s=0.5, to_s=1.5, prompt_tokens=2000),),
        ttft_p95_s=1.0,
    )


@pytest.mark.slow
def test_every_policy_has_its_lanes_and_says_how_much_it_deflected() -> None:
    svg = inline_svg(gantt, [timeline("least-loaded", 0), timeline("headroom", 20)], "g")
    assert "least-loaded: 0 % of the prompt tokens" in svg
    assert "headroom: 25 % of the prompt tokens" in svg, "200 of 800"
    assert svg.count(">p0<") == svg.count(">d0<") == 2
    assert "full height: 4" in svg


@pytest.mark.slow
def test_an_idle_stretch_is_drawn_too() -> None:
    idle = Timeline(
        policy="x", from_s=0.0, to_s=1.0, node_ids=("p0",), spans=(), waiting=(), ttft_p95_s=0.0
    )
    assert "0 % of the prompt tokens" in inline_svg(gantt, [idle], "g")
