"""What the load client measures through the router is what the router says of itself."""

from __future__ import annotations

from collections import Counter

import pytest

from spillway.core.types import Slo
from spillway.loadgen.runner import LoadOptions, PromptKind, run_load
from spillway.workload.row import Row


@pytest.mark.slow
@pytest.mark.parametrize("kind", PromptKind)
async def test_a_checked_load_agrees_with_the_routers_counts(cluster, kind):
    await cluster.start()
    rows = [
        Row(
            arrival_s=0.05 * (at // 20),
            prompt_tokens=4000 if at % 4 == 0 else 30 + at,
            output_tokens=2 + at % 9,
        )
        for at in range(60)
    ]
    options = LoadOptions(
        base_url=cluster.url,
        model="fake-llama",
        slo=Slo(0.2, 0.06),  # so short that a wait for the prefill pool matters
        prompt_kind=kind,
        check_text=True,
        drain_s=10.0,
    )

    result = await run_load(rows, options)

    assert Counter(record.outcome for record in result.records) == {"finished": 60}, [
        record.error for record in result.records if record.error
    ]
    assert [record.output_tokens for record in result.records] == [
        row.output_tokens for row in rows
    ]
    routes = Counter(record.route for record in result.records)
    assert set(routes) == {"prefill", "deflected"}, "the burst made both worth while"
    page = await cluster.metrics()
    for route, count in routes.items():
        name = f'spillway_requests_total{{route="{route}",outcome="finished"}}'
        assert page[name] == count
    reasons = Counter(record.reason for record in result.records)
    for reason, count in reasons.items():
        assert page[f'spillway_decisions_total{{reason="{reason}"}}'] == count
    assert sum(record.gaps for record in result.records) == result.gaps.count
    await cluster.check_quiet()
