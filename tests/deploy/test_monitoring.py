"""The dashboard and the alert rules ask only for metrics and labels that the router has."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from spillway.router.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "spillway.json"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yaml"
NAME = re.compile(r"\bspillway_\w+")
SELECTED = re.compile(r"(spillway_\w+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([^)]*)\)\s*\((.*)", re.DOTALL)
TARGET_LABELS = {"instance", "worker"}  # Prometheus and `serve --workers` add these to every sample
# What is shown as the quotient or the picture of others, or for debugging alone.
SHOWN_ELSEWHERE = {
    "spillway_ledger_drift_tokens",  # its sum without sign is
    "spillway_node_drift_alarms_total",  # spillway_node_drifting is
    "spillway_traces_sent_total",  # what is lost is
    "spillway_upstream_idle",  # what is reused is
}
LEGEND_LABEL = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def metric_of(name: str) -> str:
    """Return the metric that a series belongs to: histograms have three kinds of them."""
    for suffix in ("_bucket", "_sum", "_count"):
        base = name.removesuffix(suffix)
        if base != name and base in METRICS and METRICS[base].kind == "histogram":
            return base
    assert name in METRICS, f"no such metric: {name}"
    assert METRICS[name].kind != "histogram", f"a histogram has no series {name}"
    return name


def check(query: str) -> None:
    names = [metric_of(name) for name in NAME.findall(query)]
    assert names, query
    assert query.count("(") == query.count(")")
    for series, selectors in SELECTED.findall(query):
        for label in re.findall(r"(\w+)=", selectors):
            assert label in METRICS[metric_of(series)].labels, query
    for labels, rest in GROUPED.findall(query):
        of = METRICS[metric_of(NAME.findall(rest)[0])]
        known = (
            TARGET_LABELS | {*of.labels, "le"}
            if of.kind == "histogram"
            else TARGET_LABELS | set(of.labels)
        )
        assert {label.strip() for label in labels.split(",")} <= known, query
    for name in re.findall(r"(?:rate|increase)\((\w+)", query):
        assert METRICS[metric_of(name)].kind != "gauge", f"a gauge has no rate: {query}"


def dashboard_queries() -> list[tuple[str, str]]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [
        (one["expr"], one["legendFormat"])
        for panel in panels
        if panel["type"] != "row"
        for one in panel["targets"]
    ]


def alert_rules() -> list[dict]:
    [group] = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def test_the_dashboard_asks_for_what_there_is() -> None:
    queries = dashboard_queries()
    assert len(queries) > 20
    for query, legend in queries:
        check(query)
        labels = {
            label for name in NAME.findall(query) for label in METRICS[metric_of(name)].labels
        }
        assert set(LEGEND_LABEL.findall(legend)) <= labels


def test_every_alert_asks_for_what_there_is_and_says_what_is_wrong() -> None:
    rules = alert_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules) > 8
    for rule in rules:
        check(rule["expr"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        labels = {
            label
            for name in NAME.findall(rule["expr"])
            for label in METRICS[metric_of(name)].labels
        }
        assert set(LEGEND_LABEL.findall(rule["annotations"]["summary"])) <= labels | TARGET_LABELS


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = " ".join(
        [query for query, _ in dashboard_queries()] + [r["expr"] for r in alert_rules()]
    )
    shown = {metric_of(name) for name in NAME.findall(asked)}
    assert set(METRICS) - shown == SHOWN_ELSEWHERE


def test_what_several_routers_say_of_one_node_is_not_added_up() -> None:
    for query, _ in dashboard_queries():
        gauges = [name for name in NAME.findall(query) if name.startswith("spillway_node_")]
        if any(METRICS[metric_of(name)].kind == "gauge" for name in gauges):
            assert query.startswith(("max by (node)", "min by (role) (sum by (role, instance,")), (
                query
            )


def test_no_panel_lies_on_another() -> None:
    taken = set()
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    ("script", "function", "written"),
    [
        ("grafana", "text", DASHBOARD),
        ("metrics_doc", "page", ROOT / "docs" / "metrics.md"),
        ("config_schema", "text", ROOT / "deploy" / "config.schema.json"),
    ],
)
def test_the_generated_file_is_current(
    monkeypatch, script: str, function: str, written: Path
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, script, raising=False)
    made = getattr(import_module(script), function)()
    assert written.read_text(encoding="utf-8") == made, f"run: .venv/bin/python scripts/{script}.py"
