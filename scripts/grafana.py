"""Write the Grafana dashboard in deploy/grafana/ from the panels listed here.

.venv/bin/python scripts/grafana.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

TARGET = Path(__file__).resolve().parents[1] / "deploy" / "grafana" / "spillway.json"
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT, HEADING_HEIGHT = 24, 8, 8, 1
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


def by_node(name: str, legend: str = "{{node}}") -> tuple[str, str]:
    """Return the query for a gauge of nodes.

    Every router, and every worker of one, has its own sample of each node. All of them speak of the
    same node, so they are not added up: the largest is shown.
    """
    return (f"max by (node) ({name})", legend)


def rate_by(name: str, labels: str, legend: str) -> tuple[str, str]:
    """Return the query for a counter, summed over routers by some of its labels."""
    return (f"sum by ({labels}) (rate({name}{RATE})) > 0", legend)


TRAFFIC = (
    Panel(
        "Requests ended", "reqps", (rate_by("spillway_requests_total", "outcome", "{{outcome}}"),)
    ),
    Panel(
        "Share deflected",
        "percentunit",
        (
            (
                f'(sum(rate(spillway_requests_total{{route="deflected"}}{RATE})) or vector(0)) '
                f"/ sum(rate(spillway_requests_total{RATE}))",
                "deflected",
            ),
        ),
    ),
    Panel(
        "Decisions by reason",
        "reqps",
        (rate_by("spillway_decisions_total", "reason", "{{reason}}"),),
    ),
    Panel(
        "In the router",
        "short",
        (
            ("sum(spillway_inflight)", "not ended"),
            ("sum by (class) (spillway_queued)", "queued: {{class}}"),
            ("sum(spillway_held)", "held until a node is due"),
            ("sum(spillway_client_connections)", "client connections"),
        ),
    ),
    Panel(
        "Wait before the first decision",
        "s",
        quantiles("spillway_decision_wait_seconds"),
        "In the queue of its class, or held back by the policy.",
    ),
    Panel(
        "Turned away",
        "reqps",
        (
            rate_by("spillway_bad_requests_total", "status", "answered {{status}}"),
            rate_by("spillway_queue_refused_total", "class, kind", "queue of {{class}}: {{kind}}"),
        ),
        "Refused before any engine saw it.",
    ),
)
LATENCY = (
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
                f"(sum by (route) (rate(spillway_stream_gaps_late_total{RATE})) "
                f"or 0 * sum by (route) (rate(spillway_stream_gap_seconds_count{RATE}))) "
                f"/ sum by (route) (rate(spillway_stream_gap_seconds_count{RATE}))",
                "{{route}}",
            ),
        ),
    ),
    Panel("Longest step planned", "s", quantiles("spillway_predicted_step_seconds")),
)
NODES = (
    Panel(
        "Step time against budget",
        "s",
        (
            by_node('spillway_node_step_seconds{role="decode"}', "{{node}} step"),
            by_node('spillway_node_step_predicted_seconds{role="decode"}', "{{node}} predicted"),
            by_node('spillway_node_budget_seconds{role="decode"}', "{{node}} budget"),
        ),
    ),
    Panel(
        "Backlog", "short", (by_node("spillway_node_backlog_tokens"),), "Prefill tokens waiting."
    ),
    Panel("Streams", "short", (by_node("spillway_node_decode_seqs"),)),
    Panel(
        "KV in use",
        "percentunit",
        (by_node("spillway_node_kv_used_tokens / (spillway_node_kv_capacity_tokens > 0)"),),
    ),
    Panel(
        "Usable nodes",
        "short",
        (("min by (role) (sum by (role, instance, worker) (spillway_node_usable))", "{{role}}"),),
        "As the router sees them that sees the fewest.",
    ),
    Panel(
        "Age of the last report",
        "s",
        (by_node("spillway_node_report_age_seconds"),),
        "A node that is silent for too long gets no deflected work (stale_veto).",
    ),
    Panel(
        "Failed legs",
        "reqps",
        (
            rate_by("spillway_upstream_errors_total", "node, kind", "{{node}} {{kind}}"),
            rate_by("spillway_kv_releases_total", "node, kind", "{{node}} orphaned KV {{kind}}"),
        ),
        "Orphaned KV: no decode node was told of it; taken means that its node frees it.",
    ),
    Panel(
        "Nodes spared or taken out",
        "ops",
        (
            rate_by("spillway_ejections_total", "node", "{{node}} ejected"),
            rate_by("spillway_ejections_withheld_total", "node", "{{node}} kept, being the last"),
            rate_by("spillway_node_strains_total", "node", "{{node}} spared for late gaps"),
        ),
        "Ejected: its legs failed. Spared: a node without reports whose streams were late.",
    ),
    Panel(
        "Connections to nodes",
        "ops",
        (
            rate_by("spillway_upstream_connections_total", "node", "{{node}} opened"),
            rate_by("spillway_upstream_reused_total", "node", "{{node}} reused"),
            rate_by("spillway_upstream_retried_total", "node", "{{node}} found dead"),
        ),
        "Many opened beside few reused: upstream_idle_s does not fit the engines' keep-alive.",
    ),
)
MODEL = (
    Panel(
        "Calibration",
        "none",
        (
            by_node("spillway_node_gain_decode", "{{node}} decode"),
            by_node("spillway_node_gain_prefill", "{{node}} prefill"),
            by_node("spillway_node_margin", "{{node}} padding"),
        ),
        "By what each node corrects its profile, and pads its predictions; 1 is a perfect profile.",
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
    Panel(
        "Nodes not to be predicted",
        "short",
        (
            by_node("spillway_node_drifting", "{{node}} is off its profile"),
            by_node("spillway_node_plugin_faulty", "{{node}} has a plug-in that only reports"),
        ),
        "1 while it lasts. Calibrate such a node, or read its log.",
    ),
)
SHARED = (
    Panel(
        "Leave to deflect, asked of shared nodes",
        "reqps",
        (rate_by("spillway_reservations_total", "kind", "{{kind}}"),),
        "Nothing is asked while one router listens to a node. Refusals: backlog, kv, over_budget "
        "and busy; any other word but granted means that the node gave no answer.",
    ),
    Panel(
        "Share declined",
        "percentunit",
        (
            (
                f'sum by (node) (rate(spillway_reservations_total{{kind!="granted"}}{RATE})) '
                f"/ sum by (node) (rate(spillway_reservations_total{RATE}))",
                "{{node}}",
            ),
        ),
        "Each costs a round trip and a second decision.",
    ),
    Panel(
        "Workers",
        "short",
        (
            ("sum(spillway_workers)", "running"),
            (f"sum(increase(spillway_worker_restarts_total{RATE}))", "started again"),
        ),
        "Only with --workers above 1.",
    ),
)
OPERATION = (
    Panel(
        "Shadow decisions",
        "reqps",
        (rate_by("spillway_shadow_decisions_total", "route, reason", "{{route}} {{reason}}"),),
        "What the policy that only watches would have done.",
    ),
    Panel("TTFT predicted by the shadow", "s", quantiles("spillway_shadow_predicted_ttft_seconds")),
    Panel(
        "Discovery",
        "s",
        (
            ("max(spillway_discovery_age_seconds)", "since the API server spoke, s"),
            ("max(spillway_discovery_pods_refused)", "pods that cannot be nodes"),
            (f"sum by (kind) (increase(spillway_discovery_failures_total{RATE}))", "{{kind}}"),
        ),
    ),
    Panel(
        "Configuration read again",
        "short",
        ((f"sum by (outcome) (increase(spillway_reloads_total{RATE}))", "{{outcome}}"),),
        "After a refusal the old configuration stays in force; the log says what is wrong.",
    ),
    Panel(
        "Lost on the way",
        "ops",
        (
            (f"sum(rate(spillway_log_dropped_total{RATE}))", "log lines"),
            (f"sum(rate(spillway_decision_log_dropped_total{RATE}))", "logged decisions"),
            rate_by("spillway_traces_dropped_total", "kind", "traces: {{kind}}"),
            rate_by("spillway_reports_dropped_total", "node, kind", "{{node}} reports: {{kind}}"),
        ),
    ),
    Panel(
        "Should stay at 0",
        "ops",
        (
            (f"sum(rate(spillway_policy_failures_total{RATE}))", "decisions by the fall-back"),
            (f"sum(rate(spillway_events_ignored_total{RATE}))", "facts that came too late"),
            (f"sum(rate(spillway_loop_stalled_seconds_total{RATE}))", "s/s the loop stood still"),
            (f"sum(rate(spillway_loop_stalls_total{RATE}))", "times that it did"),
        ),
    ),
)
SECTIONS = (
    ("Traffic", TRAFFIC),
    ("First tokens and gaps", LATENCY),
    ("Nodes", NODES),
    ("How well the nodes are known", MODEL),
    ("Several routers, several workers", SHARED),
    ("Operation", OPERATION),
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
        "panels": _panels(),
    }


def _panels() -> list[dict[str, Any]]:
    """Return every section: its heading, then its panels from left to right."""
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in SECTIONS:
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": HEADING_HEIGHT},
                "panels": [],
            }
        )
        y += HEADING_HEIGHT
        for at, panel in enumerate(panels):
            row, column = divmod(at, COLUMNS // PANEL_WIDTH)
            made.append(_panel(len(made) + 1, panel, column * PANEL_WIDTH, y + row * PANEL_HEIGHT))
        y += -(-len(panels) * PANEL_WIDTH // COLUMNS) * PANEL_HEIGHT
    return made


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.meaning,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": PANEL_WIDTH, "h": PANEL_HEIGHT},
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
