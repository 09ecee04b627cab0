"""One line per request, the same from the simulator and from the load client.

A report cannot tell the two apart, so one summary serves both (`results.py`).
"""

from __future__ import annotations

import msgspec

RECORD_VERSION = 1


class TtftParts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where a first token's time went, seconds; the parts add up to the TTFT."""

    queue: float = 0.0
    execute: float = 0.0
    transfer: float = 0.0
    admission: float = 0.0
    first_step: float = 0.0


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What happened to one request.

    outcome: finished | failed | rejected | cancelled.    route: prefill | deflected | "".
    ttft_s: None when no token came.                      gap_*: over its token gaps.
    gaps_late: gaps above slo_tbt_s.                      parts: None when they are not known.
    """

    request_id: str
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    slo_ttft_s: float
    slo_tbt_s: float
    outcome: str
    class_name: str = "default"
    route: str = ""
    reason: str = ""
    ttft_s: float | None = None
    gaps: int = 0
    gaps_late: int = 0
    gap_mean_s: float = 0.0
    gap_max_s: float = 0.0
    finish_s: float | None = None
    kv_bytes_moved: int = 0
    parts: TtftParts | None = None
    error: str = ""
    version: int = RECORD_VERSION
