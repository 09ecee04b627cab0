"""The plan and the client's own lateness."""

from __future__ import annotations

import pytest

from spillway.loadgen.schedule import Lateness, lateness, schedule
from spillway.workload.row import Row


def test_the_plan_is_in_order_of_arrival_with_ids_of_the_run():
    late, early, tied = Row(2.0, 1, 1), Row(0.5, 2, 1), Row(2.0, 3, 1)
    plan = schedule([late, early, tied], "demo")
    assert [due.row for due in plan] == [early, late, tied]
    assert [due.due_s for due in plan] == [0.5, 2.0, 2.0]
    assert [due.request_id for due in plan] == ["demo-0", "demo-1", "demo-2"]


def test_lateness_of_hundred_requests():
    summary = lateness([k / 1000 for k in range(101)][::-1])
    assert (summary.p50_s, summary.p99_s, summary.max_s) == pytest.approx((0.05, 0.099, 0.1))


def test_lateness_of_none_is_zero():
    assert lateness([]) == Lateness(p50_s=0.0, p99_s=0.0, max_s=0.0)
