"""What the router counts, and how it is shown to Prometheus.

In the hot path a metric is an integer or a bisected histogram; text is made when somebody asks.
METRICS is the one table of names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

METRICS: dict[str, tuple[str, str]] = {
    "spillway_requests_total": ("counter", "Requests that ended, by last route and outcome."),
    "spillway_bad_requests_total": ("counter", "Requests refused unseen by any engine, by status."),
    "spillway_decisions_total": ("counter", "Decisions, by reason."),
    "spillway_ttft_seconds": ("histogram", "From a request's last byte in to the first byte out."),
    "spillway_predicted_ttft_seconds": ("histogram", "The estimate of each decision."),
    "spillway_inflight": ("gauge", "Requests that have not ended."),
    "spillway_client_connections": ("gauge", "Open client connections."),
    "spillway_upstream_errors_total": ("counter", "Legs that failed, by node and kind."),
    "spillway_ejections_total": ("counter", "Nodes taken out for failing legs, by node."),
    "spillway_ejections_withheld_total": (
        "counter",
        "Ejections not made because the node is the last usable one of its role, by node.",
    ),
    "spillway_upstream_connections_total": ("counter", "Connections opened, by node."),
    "spillway_upstream_reused_total": ("counter", "Requests sent on an idle connection, by node."),
    "spillway_upstream_retried_total": ("counter", "Idle connections found dead, by node."),
    "spillway_upstream_idle": ("gauge", "Idle connections, by node."),
    "spillway_node_usable": ("gauge", "1 while a node may get work, by node and role."),
    "spillway_node_backlog_tokens": ("gauge", "Prefill tokens believed to wait, by node and role."),
    "spillway_node_decode_seqs": ("gauge", "Streams believed to decode, by node and role."),
    "spillway_node_kv_used_tokens": ("gauge", "KV tokens believed in use, by node and role."),
    "spillway_reports_total": ("counter", "Node reports taken, by node."),
    "spillway_reports_dropped_total": ("counter", "Node reports not taken, by node and kind."),
    "spillway_decision_log_dropped_total": ("counter", "Decisions that the log had no room for."),
    "spillway_events_ignored_total": ("counter", "Late facts about requests that had ended."),
    "spillway_policy_failures_total": ("counter", "Decisions made by the fall-back."),
}

SECONDS_BOUNDS = tuple(
    round(mantissa * 10.0**exponent, 6)
    for exponent in range(-3, 2)
    for mantissa in (1.0, 1.5, 2.0, 3.0, 5.0, 7.5)
)

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]


class Histogram:
    """Counts in fixed buckets, upper bounds inclusive."""

    __slots__ = ("_counts", "sum_s")

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS_BOUNDS) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float) -> None:
        self._counts[bisect_left(SECONDS_BOUNDS, value_s)] += 1
        self.sum_s += value_s

    @property
    def count(self) -> int:
        return sum(self._counts)

    def lines(self, name: str) -> Iterable[str]:
        total = 0
        for bound, count in zip(SECONDS_BOUNDS, self._counts, strict=False):
            total += count
            yield f'{name}_bucket{{le="{bound:g}"}} {total}'
        total += self._counts[-1]
        yield f'{name}_bucket{{le="+Inf"}} {total}'
        yield f"{name}_sum {self.sum_s!r}"
        yield f"{name}_count {total}"


class RouterMetrics:
    """The counters that the hot path touches."""

    __slots__ = (
        "bad_requests",
        "decisions",
        "ejections",
        "ejections_withheld",
        "predicted_ttft",
        "reports",
        "reports_dropped",
        "requests",
        "ttft",
        "upstream_errors",
    )

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()  # (route, outcome)
        self.bad_requests: Counter[int] = Counter()  # status
        self.decisions: Counter[str] = Counter()  # reason
        self.upstream_errors: Counter[tuple[str, str]] = Counter()  # (node, kind)
        self.ejections: Counter[str] = Counter()  # node
        self.ejections_withheld: Counter[str] = Counter()  # node
        self.reports: Counter[str] = Counter()  # node
        self.reports_dropped: Counter[tuple[str, str]] = Counter()  # (node, kind)
        self.ttft = Histogram()
        self.predicted_ttft = Histogram()

    def counted(self) -> dict[str, list[Sample]]:
        """Return the counters as samples by metric name."""
        return {
            "spillway_requests_total": [
                ((("route", route), ("outcome", outcome)), count)
                for (route, outcome), count in sorted(self.requests.items())
            ],
            "spillway_bad_requests_total": [
                ((("status", str(status)),), count)
                for status, count in sorted(self.bad_requests.items())
            ],
            "spillway_decisions_total": [
                ((("reason", reason),), count) for reason, count in sorted(self.decisions.items())
            ],
            "spillway_upstream_errors_total": _by_node_and_kind(self.upstream_errors),
            "spillway_ejections_total": _by_node(self.ejections),
            "spillway_ejections_withheld_total": _by_node(self.ejections_withheld),
            "spillway_reports_total": _by_node(self.reports),
            "spillway_reports_dropped_total": _by_node_and_kind(self.reports_dropped),
        }

    def histograms(self) -> dict[str, Histogram]:
        return {
            "spillway_ttft_seconds": self.ttft,
            "spillway_predicted_ttft_seconds": self.predicted_ttft,
        }


def _by_node(counter: Counter[str]) -> list[Sample]:
    return [((("node", node),), count) for node, count in sorted(counter.items())]


def _by_node_and_kind(counter: Counter[tuple[str, str]]) -> list[Sample]:
    return [
        ((("node", node), ("kind", kind)), count) for (node, kind), count in sorted(counter.items())
    ]


def render(samples: Mapping[str, Iterable[Sample]], histograms: Mapping[str, Histogram]) -> str:
    """Return the Prometheus text of everything in METRICS, in its order.

    Raises KeyError for a sample or histogram whose name is not in the table.
    """
    for name in (*samples, *histograms):
        METRICS[name]
    lines: list[str] = []
    for name, (kind, meaning) in METRICS.items():
        lines += (f"# HELP {name} {meaning}", f"# TYPE {name} {kind}")
        if name in histograms:
            lines += histograms[name].lines(name)
        for labels, value in samples.get(name, ()):
            lines.append(f"{name}{_labelled(labels)} {value:.17g}")
    return "\n".join(lines) + "\n"


def _labelled(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
