"""Write the Grafana dashboard in deploy/grafana/ from the panels listed here.

.venv/bin/python scripts/grafana.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

TARGET = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "spillway.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 8
RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """One graph: its title, unit, and (query, legend) pairs."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str = ""


def quantiles(name: str) -> tuple[tuple[str, str], ...]:
    """Return the queries for the median and the tail of a histogram, by route."""
    return tuple(
        (
            f"histogram_quantile({share}, sum by (le, route) (rate({name}_bucket{RATE})))",
            f"{{{{route}}}} p{int(share * 100)}",
        )
        for share in (0.5, 0.99)
    )


def by_node(name: str) -> tuple[tuple[str, str], ...]:
    return ((f"sum by (node) ({name})", "{{node}}"),)


PANELS = (
    Panel(
        "Requests ended",
        "reqps",
        ((f"sum by (outcome) (rate(spillway_requests_total{RATE}))", "{{outcome}}"),),
    ),
    Panel(
        "Share deflected",
        "percentunit",
        (
            (
                f'sum(rate(spillway_requests_total{{route="deflected"}}{RATE})) '
                f"/ sum(rate(spillway_requests_total{RATE}))",
                "deflected",
            ),
        ),
    ),
    Panel(
        "Decisions by reason",
        "reqps",
        ((f"sum by (reason) (rate(spillway_decisions_total{RATE})) > 0", "{{reason}}"),),
    ),
    Panel("TTFT", "s", quantiles("spillway_ttft_seconds")),
    Panel("Predicted TTFT", "s", quantiles("spillway_predicted_ttft_seconds")),
    Panel(
        "Realised over predicted TTFT",
        "none",
        quantiles("spillway_ttft_ratio"),
        "1 is a perfect forecast; a median that drifts away asks for a new calibration.",
    ),
    Panel("Gaps within streams", "s", quantiles("spillway_stream_gap_seconds")),
    Panel(
        "Share of gaps beyond their target",
        "percentunit",
        (
            (
                f"sum by (route) (rate(spillway_stream_gaps_late_total{RATE})) "
                f"/ sum by (route) (rate(spillway_stream_gap_seconds_count{RATE}))",
                "{{route}}",
            ),
        ),
    ),
    Panel("Longest step planned", "s", quantiles("spillway_predicted_step_seconds")),
    Panel(
        "Step time against budget",
        "s",
        (
            ('spillway_node_step_seconds{role="decode"}', "{{node}} step"),
            ('spillway_node_budget_seconds{role="decode"}', "{{node}} budget"),
        ),
    ),
    Panel("Backlog", "short", by_node("spillway_node_backlog_tokens"), "Prefill tokens waiting."),
    Panel("Streams", "short", by_node("spillway_node_decode_seqs")),
    Panel(
        "KV in use",
        "percentunit",
        (
            (
                "spillway_node_kv_used_tokens / (spillway_node_kv_capacity_tokens > 0)",
                "{{node}}",
            ),
        ),
    ),
    Panel(
        "Calibration",
        "none",
        (
            ("spillway_node_gain_decode", "{{node}} decode"),
            ("spillway_node_gain_prefill", "{{node}} prefill"),
        ),
        "By what each node corrects its profile; 1 is a perfect profile.",
    ),
    Panel(
        "Ledger error",
        "short",
        (
            (
                f"sum by (node) (rate(spillway_ledger_drift_tokens_total{RATE})) "
                f"/ sum by (node) (rate(spillway_reports_total{RATE}))",
                "{{node}}",
            ),
        ),
        "Mean tokens by which a report corrects what was believed.",
    ),
    Panel("Usable nodes", "short", (("sum by (role) (spillway_node_usable)", "{{role}}"),)),
    Panel(
        "Failed legs",
        "reqps",
        (
            (
                f"sum by (node, kind) (rate(spillway_upstream_errors_total{RATE}))",
                "{{node}} {{kind}}",
            ),
        ),
    ),
    Panel(
        "In flight",
        "short",
        (
            ("spillway_inflight", "requests"),
            ("spillway_client_connections", "connections"),
        ),
    ),
)


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    return {
        "uid": "spillway",
        "title": "Spillway",
        "tags": ["spillway", "llm"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                }
            ]
        },
        "panels": [_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    per_row = COLUMNS // PANEL_WIDTH
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": {
            "x": number % per_row * PANEL_WIDTH,
            "y": number // per_row * PANEL_HEIGHT,
            "w": PANEL_WIDTH,
            "h": PANEL_HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
            }
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }


def text() -> str:
    """Return the whole file."""
    return json.dumps(dashboard(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
