"""What is read off the router's parts when somebody asks for /metrics: nothing is kept for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite

from spillway.core.lifecycle import State
from spillway.core.types import NodeId, NodeView
from spillway.router.discovery import Discovery
from spillway.router.metrics import Labels, Sample
from spillway.router.pool import NodePool
from spillway.router.shell import Shell
from spillway.wire.report import NodeReport

Samples = dict[str, list[Sample]]


def of_shell(shell: Shell, client_conns: int) -> Samples:
    """Return what there is one of."""
    values = {
        "spillway_inflight": len(shell.live),
        "spillway_held": shell.dispatcher.counts[State.HELD],
        "spillway_client_connections": client_conns,
        "spillway_decision_log_dropped_total": shell.decisions.file.dropped,
        "spillway_log_dropped_total": shell.log.dropped,
        "spillway_events_ignored_total": shell.dispatcher.ignored_events,
        "spillway_policy_failures_total": shell.dispatcher.policy_failures,
        "spillway_loop_stalls_total": shell.heartbeat.stalls,
        "spillway_loop_stalled_seconds_total": shell.heartbeat.lost_s(),
    }
    samples: Samples = {name: [((), value)] for name, value in values.items()}
    if shell.gate is not None:
        samples["spillway_queued"] = [
            ((("class", name),), count) for name, count in shell.gate.queued().items()
        ]
        samples["spillway_queue_refused_total"] = [
            ((("class", name), ("kind", kind)), count)
            for (name, kind), count in sorted(shell.gate.refused.items())
        ]
    if shell.tracer is not None:
        samples["spillway_traces_sent_total"] = [((), shell.tracer.sent)]
        samples["spillway_traces_dropped_total"] = [
            ((("kind", kind),), count) for kind, count in sorted(shell.tracer.dropped.items())
        ]
    return samples


def of_discovery(discovery: Discovery, now_s: float) -> Samples:
    """Return how the search for nodes goes."""
    samples: Samples = {
        "spillway_discovery_failures_total": [
            ((("kind", kind),), count) for kind, count in sorted(discovery.failures().items())
        ]
    }
    if discovery.pods is not None:
        age_s = now_s - discovery.pods.watch.heard_s
        samples["spillway_discovery_age_seconds"] = [((), age_s)]
        samples["spillway_discovery_pods_refused"] = [((), len(discovery.pods.found.faults))]
    return samples


def of_pools(pools: Mapping[NodeId, NodePool]) -> Samples:
    """Return the connections to each node."""
    figures: dict[str, Callable[[NodePool], float]] = {
        "spillway_upstream_connections_total": lambda pool: pool.opened,
        "spillway_upstream_reused_total": lambda pool: pool.reused,
        "spillway_upstream_retried_total": lambda pool: pool.retried,
        "spillway_upstream_idle": lambda pool: pool.idle_conns,
    }
    return {
        name: [((("node", node),), figure(pool)) for node, pool in pools.items()]
        for name, figure in figures.items()
    }


def of_nodes(shell: Shell) -> Samples:
    """Return what is believed of each node, and what those that report said last."""
    now_s = shell.clock.now_s()
    samples: Samples = {}

    def add(name: str, labels: Labels, value: float) -> None:
        samples.setdefault(name, []).append((labels, float(value)))

    for node_id, node in shell.dispatcher.ledger.nodes.items():
        view = node.view
        labels = (("node", node_id), ("role", view.spec.role.value))
        for name, value in believed(view).items():
            if isfinite(value):
                add(name, labels, value)
        alarms = node.calibration.alarms if node.calibration is not None else 0
        add("spillway_node_drift_alarms_total", labels, alarms)
        report = shell.last_reports.get(node_id)
        if report is not None:
            for name, value in reported(report).items():
                add(name, labels, value)
            if isfinite(view.heard_at_s):
                add("spillway_node_report_age_seconds", labels, now_s - view.heard_at_s)
    return samples


def budget_s(view: NodeView) -> float:
    """Return what a step with deflected work may take there; inf: nothing to protect."""
    return view.tbt_s_min * view.spec.tbt_margin_frac


def believed(view: NodeView) -> dict[str, float]:
    """Return the ledger's figures of a node, by metric name."""
    return {
        "spillway_node_usable": view.usable,
        "spillway_node_backlog_tokens": view.backlog_tokens,
        "spillway_node_decode_seqs": view.decode_seqs,
        "spillway_node_kv_used_tokens": view.kv_used_tokens,
        "spillway_node_kv_capacity_tokens": view.kv_capacity_tokens,
        "spillway_node_budget_seconds": budget_s(view),
        "spillway_node_drifting": view.drifting,
    }


def reported(report: NodeReport) -> dict[str, float]:
    """Return the figures of a node's own word, by metric name."""
    return {
        "spillway_node_step_seconds": report.last_step_actual_s,
        "spillway_node_step_predicted_seconds": report.last_step_predicted_s,
        "spillway_node_gain_decode": report.gain_decode,
        "spillway_node_gain_prefill": report.gain_prefill,
        "spillway_node_margin": report.margin,
        "spillway_node_plugin_faulty": bool(report.fault),
    }
