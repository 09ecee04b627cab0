"""A run that is watched is the run it watches."""

from __future__ import annotations

import pytest

from spillway.sim.run import run
from spillway.sim.scenario import Scenario
from spillway.sim.timeline import record_timeline, worst_burst_s
from spillway.wire.results import summarise
from spillway.workload.synthetic import family

ROWS = family("burst", 1, 20.0, 14.0)
EVER = (0.0, 1e9)


@pytest.mark.slow
def test_every_prompt_token_and_every_stream_is_in_a_span() -> None:
    timeline = record_timeline(Scenario(policy="headroom"), ROWS, 1, EVER)
    output = run(Scenario(policy="headroom"), ROWS, 1)
    summary = summarise(policy="x", records=output.records, gaps=output.gaps, wall_s=0.0)
    assert timeline.ttft_p95_s == summary.ttft_s.p95, "watching changes nothing"
    by_route = {"prefill": 0, "deflected": 0}
    for record in output.records:
        by_route[record.route] += record.prompt_tokens
    spans = timeline.spans
    assert sum(span.prefill_tokens * span.steps for span in spans) == by_route["prefill"]
    assert sum(span.deflected_tokens * span.steps for span in spans) == by_route["deflected"] > 0
    assert sum(span.steps for span in spans) == output.work.steps
    gaps = sum(record.gaps for record in output.records)
    assert sum(span.decode_seqs * span.steps for span in spans) >= gaps
    assert timeline.node_ids == ("p0", "p1", "d0", "d1")


@pytest.mark.slow
def test_only_the_stretch_is_kept_and_prompts_wait_within_it() -> None:
    from_s, to_s = worst_burst_s(ROWS)
    assert 0 <= from_s < to_s
    timeline = record_timeline(Scenario(policy="least-loaded"), ROWS, 1, (from_s, to_s))
    assert timeline.spans
    assert all(span.end_s > from_s and span.start_s < to_s for span in timeline.spans)
    assert all(wait.to_s > from_s and wait.from_s < to_s for wait in timeline.waiting)
    assert all(span.deflected_tokens == 0 for span in timeline.spans)
