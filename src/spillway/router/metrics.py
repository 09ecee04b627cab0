"""What the router counts, and how it is shown to Prometheus.

In the hot path a metric is an integer or a bisected histogram; text is made when somebody asks.
METRICS is the one table of names; docs/metrics.md is written from it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from math import inf
from typing import NamedTuple

from spillway.core.decide import Decision, Reason


class Metric(NamedTuple):
    """One row of the table: its kind, its labels in order, and what it means."""

    kind: str
    labels: tuple[str, ...]
    meaning: str


NODE, NODE_ROLE, NODE_KIND, ROUTE = ("node",), ("node", "role"), ("node", "kind"), ("route",)


def _counter(meaning: str, *labels: str) -> Metric:
    return Metric("counter", labels, meaning)


def _gauge(meaning: str, *labels: str) -> Metric:
    return Metric("gauge", labels, meaning)


def _histogram(meaning: str, *labels: str) -> Metric:
    return Metric("histogram", labels, meaning)


METRICS: dict[str, Metric] = {
    "spillway_requests_total": _counter(
        "Requests that ended, by last route and outcome.", "route", "outcome"
    ),
    "spillway_bad_requests_total": _counter(
        "Requests refused unseen by any engine, by status.", "status"
    ),
    "spillway_decisions_total": _counter("Decisions, by reason; every reason is there.", "reason"),
    "spillway_shadow_decisions_total": _counter(
        "Decisions of the policy that only watches, had it routed; none without `shadow`.",
        *("route", "reason"),
    ),
    "spillway_shadow_predicted_ttft_seconds": _histogram("The estimate of each of them.", *ROUTE),
    "spillway_ttft_seconds": _histogram(
        "From a request's last byte in to the first byte out.", *ROUTE
    ),
    "spillway_predicted_ttft_seconds": _histogram("The estimate of each decision.", *ROUTE),
    "spillway_ttft_ratio": _histogram(
        "Realised TTFT over the last decision's estimate: 1 is a perfect forecast.", *ROUTE
    ),
    "spillway_stream_gap_seconds": _histogram(
        "Between two reads of a stream, of one stream in gap_sample_every.", *ROUTE
    ),
    "spillway_stream_gaps_late_total": _counter(
        "Gaps of the sampled streams that exceeded their request's TBT target.", *ROUTE
    ),
    "spillway_node_strains_total": _counter(
        "Times a node without reports was spared deflected prompts for the gaps of its streams.",
        *NODE,
    ),
    "spillway_predicted_step_seconds": _histogram(
        "The longest step that each deflection was planned to cause.", *ROUTE
    ),
    "spillway_inflight": _gauge("Requests that have not ended."),
    "spillway_held": _gauge("Requests held back by the policy until a node is due."),
    "spillway_decision_wait_seconds": _histogram(
        "From a request's last byte in to its first decision: in a queue, or held back.", *ROUTE
    ),
    "spillway_queued": _gauge("Requests that wait for others to end, by class.", "class"),
    "spillway_queue_refused_total": _counter(
        "Requests that found the queue of their class full, or waited in it for too long.",
        "class",
        "kind",
    ),
    "spillway_client_connections": _gauge("Open client connections."),
    "spillway_upstream_errors_total": _counter("Legs that failed, by node and kind.", *NODE_KIND),
    "spillway_ejections_total": _counter("Times a node was taken out for failing legs.", *NODE),
    "spillway_ejections_withheld_total": _counter(
        "Ejections not made, the node being the last usable one of its role.", *NODE
    ),
    "spillway_upstream_connections_total": _counter("Connections opened.", *NODE),
    "spillway_upstream_reused_total": _counter("Requests sent on an idle connection.", *NODE),
    "spillway_upstream_retried_total": _counter("Idle connections found dead.", *NODE),
    "spillway_upstream_idle": _gauge("Idle connections.", *NODE),
    "spillway_node_usable": _gauge("1 while a node may get work.", *NODE_ROLE),
    "spillway_node_backlog_tokens": _gauge("Prefill tokens believed to wait.", *NODE_ROLE),
    "spillway_node_decode_seqs": _gauge("Streams believed to decode.", *NODE_ROLE),
    "spillway_node_kv_used_tokens": _gauge("KV tokens believed in use.", *NODE_ROLE),
    "spillway_node_kv_capacity_tokens": _gauge("KV tokens that fit; 0 is unknown.", *NODE_ROLE),
    "spillway_node_budget_seconds": _gauge(
        "What a step with deflected work may take: the strictest resident target less the margin; "
        "absent while nothing has to be protected.",
        *NODE_ROLE,
    ),
    "spillway_node_step_seconds": _gauge("The last step that the node reported.", *NODE_ROLE),
    "spillway_node_step_predicted_seconds": _gauge(
        "What the node had predicted for it.", *NODE_ROLE
    ),
    "spillway_node_gain_decode": _gauge(
        "By what the node corrects its profile for decode work; 1 is a perfect profile.", *NODE_ROLE
    ),
    "spillway_node_gain_prefill": _gauge("The same for prefill work.", *NODE_ROLE),
    "spillway_node_margin": _gauge("By what the node pads its predictions.", *NODE_ROLE),
    "spillway_node_drifting": _gauge(
        "1 while its steps are too far off its profile to be predicted.", *NODE_ROLE
    ),
    "spillway_node_drift_alarms_total": _counter("Times that this began.", *NODE_ROLE),
    "spillway_node_plugin_faulty": _gauge("1 while its plug-in only reports.", *NODE_ROLE),
    "spillway_node_report_age_seconds": _gauge("Since its last report.", *NODE_ROLE),
    "spillway_ledger_drift_tokens": _gauge(
        "Backlog by the last report less what the ledger believed just before it.", *NODE
    ),
    "spillway_ledger_drift_tokens_total": _counter(
        "The same summed without sign; over spillway_reports_total it is the mean error.", *NODE
    ),
    "spillway_reservations_total": _counter(
        "Nodes asked for leave to deflect, being shared with other routers, by what came of it.",
        *NODE_KIND,
    ),
    "spillway_kv_releases_total": _counter(
        "Prefilled KV that no decode node was told of: its node asked to free it, by what came of "
        "that, or left_to_lease where it cannot be asked.",
        *NODE_KIND,
    ),
    "spillway_reports_total": _counter("Node reports taken.", *NODE),
    "spillway_reports_dropped_total": _counter("Node reports not taken, by kind.", *NODE_KIND),
    "spillway_decision_log_dropped_total": _counter("Decisions that the log had no room for."),
    "spillway_log_dropped_total": _counter("Lines that the log had no room for."),
    "spillway_reloads_total": _counter("Times the configuration was read again.", "outcome"),
    "spillway_traces_sent_total": _counter("Requests whose spans the collector has taken."),
    "spillway_traces_dropped_total": _counter(
        "Requests whose spans were dropped: the queue was full, or they could not be sent.", "kind"
    ),
    "spillway_discovery_failures_total": _counter(
        "Questions for nodes without an answer, to a name server or the Kubernetes API.", "kind"
    ),
    "spillway_discovery_age_seconds": _gauge(
        "Since the Kubernetes API server last said anything; a watch that is well says something "
        "every two minutes."
    ),
    "spillway_discovery_pods_refused": _gauge(
        "Pods that match the selector and cannot be nodes as they are described; the log says why."
    ),
    "spillway_workers": _gauge("Worker processes that run; on the port of all workers alone."),
    "spillway_worker_restarts_total": _counter("Worker processes started again, likewise."),
    "spillway_loop_stalls_total": _counter(
        "Times the router's own event loop stood still; shorter than 70 ms may be missed."
    ),
    "spillway_loop_stalled_seconds_total": _counter(
        "For how long it did: no client was served, and no node is blamed for it."
    ),
    "spillway_events_ignored_total": _counter("Late facts about requests that had ended."),
    "spillway_policy_failures_total": _counter("Decisions made by the fall-back."),
}

SECONDS_BOUNDS = tuple(
    round(mantissa * 10.0**exponent, 6)
    for exponent in range(-3, 2)
    for mantissa in (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
)
RATIO_BOUNDS = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
ROUTES = ("prefill", "deflected")

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]


class Histogram:
    """Counts in fixed buckets, upper bounds inclusive."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS_BOUNDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def counts(self) -> list[int]:
        """Return the count of each bucket, that beyond the last bound included."""
        return list(self._counts)

    def lines(self, name: str, labels: Labels = ()) -> Iterable[str]:
        inside = "".join(f'{key}="{value}",' for key, value in labels)
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=False):
            total += count
            yield f'{name}_bucket{{{inside}le="{bound:g}"}} {total}'
        total += self._counts[-1]
        yield f'{name}_bucket{{{inside}le="+Inf"}} {total}'
        yield f"{name}_sum{_labelled(labels)} {self.total!r}"
        yield f"{name}_count{_labelled(labels)} {total}"


def by_route(bounds: tuple[float, ...] = SECONDS_BOUNDS) -> dict[str, Histogram]:
    """Return one empty histogram per route."""
    return {route: Histogram(bounds) for route in ROUTES}


class RouterMetrics:
    """The counters that the hot path touches."""

    __slots__ = (
        "bad_requests",
        "decisions",
        "drift_tokens",
        "drift_tokens_total",
        "ejections",
        "ejections_withheld",
        "gap",
        "gaps_late",
        "predicted_step",
        "predicted_ttft",
        "releases",
        "reloads",
        "reports",
        "reports_dropped",
        "requests",
        "reservations",
        "shadow_decisions",
        "shadow_ttft",
        "strains",
        "ttft",
        "ttft_ratio",
        "upstream_errors",
        "wait",
    )

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # (route, outcome)
        self.bad_requests: Counter[int] = Counter()  # status
        self.decisions: Counter[str] = Counter({reason.value: 0 for reason in Reason})
        self.shadow_decisions: Counter[tuple[str, str]] = Counter()  # (route, reason)
        self.shadow_ttft: dict[str, Histogram] = {}  # empty until a shadow has decided
        self.upstream_errors: Counter[tuple[str, str]] = Counter()  # (node, kind)
        self.ejections: Counter[str] = Counter()  # node
        self.ejections_withheld: Counter[str] = Counter()  # node
        self.reservations: Counter[tuple[str, str]] = Counter()  # (node, verdict or fault)
        self.releases: Counter[tuple[str, str]] = Counter()  # (node, what came of it)
        self.reports: Counter[str] = Counter()  # node
        self.reports_dropped: Counter[tuple[str, str]] = Counter()  # (node, kind)
        # From 0 on, for Prometheus sees no increase in a series that begins at 1.
        self.reloads: Counter[str] = Counter(done=0, refused=0)
        self.drift_tokens: Counter[str] = Counter()  # node, with its sign
        self.drift_tokens_total: Counter[str] = Counter()  # node
        self.gaps_late: Counter[str] = Counter()  # route
        self.strains: Counter[str] = Counter()  # node
        self.ttft = by_route()
        self.ttft_ratio = by_route(RATIO_BOUNDS)
        self.predicted_ttft = by_route()
        self.predicted_step = by_route()
        self.gap = by_route()
        self.wait = by_route()

    def watched(self, decision: Decision) -> None:
        """Count what a policy that only watches would have done."""
        self.shadow_decisions[decision.route.value, decision.reason.value] += 1
        predicted_s = decision.estimate.total_s
        if 0.0 < predicted_s < inf and decision.route in ROUTES:
            self.shadow_ttft = self.shadow_ttft or by_route()
            self.shadow_ttft[decision.route].observe(predicted_s)

    def counted(self) -> dict[str, list[Sample]]:
        """Return the counters as samples by metric name."""
        return {
            "spillway_requests_total": _by_pair(("route", "outcome"), self.requests),
            "spillway_bad_requests_total": _by_one("status", self.bad_requests),
            "spillway_decisions_total": _by_one("reason", self.decisions),
            "spillway_shadow_decisions_total": _by_pair(("route", "reason"), self.shadow_decisions),
            "spillway_upstream_errors_total": _by_pair(NODE_KIND, self.upstream_errors),
            "spillway_ejections_total": _by_one("node", self.ejections),
            "spillway_ejections_withheld_total": _by_one("node", self.ejections_withheld),
            "spillway_reloads_total": _by_one("outcome", self.reloads),
            "spillway_stream_gaps_late_total": _by_one("route", self.gaps_late),
            "spillway_node_strains_total": _by_one("node", self.strains),
            "spillway_ledger_drift_tokens": _by_one("node", self.drift_tokens),
            "spillway_ledger_drift_tokens_total": _by_one("node", self.drift_tokens_total),
            "spillway_reservations_total": _by_pair(NODE_KIND, self.reservations),
            "spillway_kv_releases_total": _by_pair(NODE_KIND, self.releases),
            "spillway_reports_total": _by_one("node", self.reports),
            "spillway_reports_dropped_total": _by_pair(NODE_KIND, self.reports_dropped),
        }

    def histograms(self) -> dict[str, dict[str, Histogram]]:
        """Return the histograms by metric name and route."""
        return {
            "spillway_ttft_seconds": self.ttft,
            "spillway_predicted_ttft_seconds": self.predicted_ttft,
            "spillway_shadow_predicted_ttft_seconds": self.shadow_ttft,
            "spillway_ttft_ratio": self.ttft_ratio,
            "spillway_stream_gap_seconds": self.gap,
            "spillway_decision_wait_seconds": self.wait,
            "spillway_predicted_step_seconds": self.predicted_step,
        }


def _by_one(label: str, counter: Mapping[str, int] | Mapping[int, int]) -> list[Sample]:
    return [(((label, str(key)),), count) for key, count in sorted(counter.items())]


def _by_pair(labels: tuple[str, ...], counter: Counter[tuple[str, str]]) -> list[Sample]:
    one, two = labels
    return [
        (((one, first), (two, second)), count) for (first, second), count in sorted(counter.items())
    ]


def render(
    samples: Mapping[str, Iterable[Sample]], histograms: Mapping[str, Mapping[str, Histogram]]
) -> str:
    """Return the Prometheus text of everything in METRICS, in its order.

    Raises KeyError for a sample or histogram whose name is not in the table.
    """
    for name in (*samples, *histograms):
        METRICS[name]
    lines: list[str] = []
    for name, metric in METRICS.items():
        lines += (f"# HELP {name} {metric.meaning}", f"# TYPE {name} {metric.kind}")
        for route, histogram in histograms.get(name, {}).items():
            lines += histogram.lines(name, (("route", route),))
        for labels, value in samples.get(name, ()):
            lines.append(f"{name}{_labelled(labels)} {value:.17g}")
    return "\n".join(lines) + "\n"


def _labelled(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
