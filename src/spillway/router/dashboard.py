"""The live page: one HTML file without outside assets, and the figures that it asks for.

The page polls, and computes rates and quantiles from the differences of counters. So nothing is
kept or computed for it here while nobody looks.
"""

from __future__ import annotations

from importlib.resources import files
from math import isfinite
from typing import Any

import msgspec

from spillway import __version__
from spillway.router.gauges import budget_s
from spillway.router.metrics import SECONDS_BOUNDS, Histogram
from spillway.router.shell import Shell
from spillway.wire.decisions import DecisionRecord

DECISIONS_SENT = 60
PAGE_NAME = "dashboard.html"


def read_page() -> bytes:
    """Return the page itself."""
    return files("spillway.router").joinpath(PAGE_NAME).read_bytes()


def figures(shell: Shell, client_conns: int) -> bytes:
    """Return all that the page shows, as JSON. Cost: O(nodes), some 100 µs; nothing is kept."""
    metrics, now_s = shell.metrics, shell.clock.now_s()
    content = {
        "now_s": now_s,
        "version": __version__,
        "policy": shell.dispatcher.policy.name,
        "inflight": len(shell.live),
        "connections": client_conns,
        "requests": [[*key, count] for key, count in sorted(metrics.requests.items())],
        "decisions": {reason: count for reason, count in metrics.decisions.items() if count},
        "bounds_s": SECONDS_BOUNDS,
        "ttft": _counts(metrics.ttft),
        "gaps": _counts(metrics.gap),
        "nodes": _nodes(shell, now_s),
        "last": [_line(record) for record in shell.decisions.recent(DECISIONS_SENT)],
    }
    return msgspec.json.encode(content)


def _counts(histograms: dict[str, Histogram]) -> dict[str, list[int]]:
    return {route: histogram.counts for route, histogram in histograms.items()}


def _nodes(shell: Shell, now_s: float) -> list[dict[str, Any]]:
    nodes = []
    for node_id, node in shell.dispatcher.ledger.nodes.items():
        view, report = node.view, shell.last_reports.get(node_id)
        budget = budget_s(view)
        nodes.append(
            {
                "id": node_id,
                "role": view.spec.role.value,
                "usable": view.usable,
                "backlog_tokens": view.backlog_tokens,
                "backlog_prompts": view.backlog_prompts,
                "backlog_s": max(0.0, view.backlog_until_s - now_s),
                "decode_seqs": view.decode_seqs,
                "seqs_max": view.spec.seqs_max,
                "kv_used_tokens": view.kv_used_tokens,
                "kv_capacity_tokens": view.kv_capacity_tokens,
                "budget_s": budget if isfinite(budget) else None,
                "step_s": report.last_step_actual_s if report else None,
                "gain_decode": report.gain_decode if report else None,
                "gain_prefill": report.gain_prefill if report else None,
                "silent_s": now_s - view.heard_at_s if report else None,
            }
        )
    return nodes


def _line(record: DecisionRecord) -> dict[str, Any]:
    decision = record.decision
    return {
        "at_s": record.decided_at_s,
        "id": record.request.request_id,
        "route": decision.route,
        "reason": decision.reason,
        "prefill": decision.prefill_node_id,
        "decode": decision.decode_node_id,
        "prompt_tokens": record.request.prompt_tokens,
        "predicted_s": decision.estimate.total_s if decision.estimate else None,
        "step_s_max": decision.plan.step_s_max if decision.plan else None,
    }
