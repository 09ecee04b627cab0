"""Write docs/metrics.md from the router's table of metrics.

.venv/bin/python scripts/metrics_doc.py
"""

from __future__ import annotations

from pathlib import Path

from spillway.core.decide import Reason
from spillway.router.metrics import METRICS, RATIO_BOUNDS, SECONDS_BOUNDS

TARGET = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"

INTRODUCTION = """\
# Metrics

`GET /metrics` of the router, in Prometheus text format. This page is written by
`scripts/metrics_doc.py` from the table in `src/spillway/router/metrics.py`; change that, not this.

A Grafana dashboard is in [deploy/grafana/spillway.json](../deploy/grafana/spillway.json), alert
rules are in [deploy/prometheus/alerts.yaml](../deploy/prometheus/alerts.yaml). A test checks both
against this table.

Counters only rise and start at 0 with the router. Gauges are as of the moment of the question.
Nothing is sampled except the gaps of streams: one stream in `router.gap_sample_every` (16).

"""


def page() -> str:
    """Return the whole of docs/metrics.md."""
    lines = ["| Metric | Kind | Labels | Meaning |", "| --- | --- | --- | --- |"]
    for name, metric in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.meaning} |")
    bounds = ", ".join(f"{bound:g}" for bound in SECONDS_BOUNDS)
    ratios = ", ".join(f"{bound:g}" for bound in RATIO_BOUNDS)
    reasons = ", ".join(f"`{reason.value}`" for reason in Reason)
    return (
        INTRODUCTION
        + "\n".join(lines)
        + f"""

## Labels

- `route`: `prefill` (the prompt ran on a prefill node) or `deflected`; empty where nothing was
  started.
- `outcome`: `finished`, `client_error` (an engine's 4xx), `failed`, `rejected` (no node could take
  it), `cancelled` (the client left, or the router stopped).
- `reason`: {reasons}. In `spillway_decisions_total` only reasons of decisions count; those of
  vetoes are in `/debug/decisions`.
- `kind` of an upstream error: a word for what broke below HTTP, or `http_STATUS`; with `health_` in
  front where a health question failed.

## Buckets

- Seconds: {bounds}.
- Ratios: {ratios}.
"""
    )


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
