"""When each request is due, and how late the client was in sending it.

An open-loop client sends at the times of the workload, whatever became of earlier requests; so its
own lateness is the one figure that says whether its other figures can be believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from spillway.stats import percentile
from spillway.workload.row import Row


class Due(NamedTuple):
    """One request of the plan. due_s: seconds after the start of the run."""

    due_s: float
    request_id: str
    row: Row


class Lateness(msgspec.Struct, frozen=True, kw_only=True):
    """How long after its due time a request was sent, in seconds, over the requests sent."""

    p50_s: float = 0.0
    p99_s: float = 0.0
    max_s: float = 0.0


def schedule(rows: Sequence[Row], run_id: str = "load") -> list[Due]:
    """Return the plan, in order of arrival; ids are the run's with a running number."""
    ordered = sorted(rows, key=lambda row: row.arrival_s)
    return [Due(row.arrival_s, f"{run_id}-{index}", row) for index, row in enumerate(ordered)]


def lateness(late_s: Sequence[float]) -> Lateness:
    """Return the summary of the requests' lateness, zeros when nothing was sent."""
    if not late_s:
        return Lateness()
    ordered = sorted(late_s)
    return Lateness(
        p50_s=percentile(ordered, 0.50), p99_s=percentile(ordered, 0.99), max_s=ordered[-1]
    )
