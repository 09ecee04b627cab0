"""The `/metrics` page: vLLM's names for what a scraper of vLLM looks for, ours for what it drops.

Gauges are read from the node when the page is asked for; counters and histograms are counted here.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from spillway.fakeengine.kvparams import BLOCK_TOKENS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# vLLM's bucket bounds, seconds (vllm/v1/metrics, 0.32).
TTFT_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
GAP_BOUNDS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
)  # fmt: skip


class Histogram:
    """Counts per bucket, a sum and a total, as Prometheus wants them."""

    __slots__ = ("_bounds_s", "_counts", "_sum_s")

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, value_s: float) -> None:
        """Count one value. O(log buckets)."""
        self._counts[bisect_left(self._bounds_s, value_s)] += 1
        self._sum_s += value_s

    def lines(self, name: str, label: str) -> Iterator[str]:
        """Yield the sample lines: cumulative buckets, sum, count."""
        total = 0
        for bound_s, count in zip((*self._bounds_s, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label},le="{bound_s}"}} {total}'
        yield f"{name}_sum{{{label}}} {self._sum_s:.9g}"
        yield f"{name}_count{{{label}}} {total}"


class EngineMetrics:
    """Everything one engine counts.

    dropped: what was refused, expired or cut off, by reason; nothing disappears uncounted.
    """

    def __init__(self, model: str) -> None:
        escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        self._label = f'model_name="{escaped}",engine="0"'
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.preemptions = 0
        self.late_s_max = 0.0
        self.dropped: Counter[str] = Counter()
        self.finished: Counter[str] = Counter()
        self.reservations: Counter[str] = Counter()  # by verdict
        self.ttft = Histogram(TTFT_BOUNDS_S)
        self.gap = Histogram(GAP_BOUNDS_S)

    def page(
        self, *, running: int, waiting: int, kv_used_tokens: int, kv_capacity_tokens: int
    ) -> str:
        """Return the whole page. running: requests in steps; waiting: for their first one."""
        kv_frac = kv_used_tokens / kv_capacity_tokens if kv_capacity_tokens else 0.0
        lines = [
            *self._one("vllm:num_requests_running", "gauge", running),
            *self._one("vllm:num_requests_waiting", "gauge", waiting),
            *self._one("vllm:kv_cache_usage_perc", "gauge", f"{kv_frac:.6g}"),
            *self._one("vllm:prompt_tokens_total", "counter", self.prompt_tokens),
            *self._one("vllm:generation_tokens_total", "counter", self.output_tokens),
            *self._one("vllm:num_preemptions_total", "counter", self.preemptions),
            "# TYPE vllm:time_to_first_token_seconds histogram",
            *self.ttft.lines("vllm:time_to_first_token_seconds", self._label),
            "# TYPE vllm:inter_token_latency_seconds histogram",
            *self.gap.lines("vllm:inter_token_latency_seconds", self._label),
            *self._many("vllm:request_success_total", "finished_reason", self.finished),
            *self._one(
                "vllm:nixl_num_kv_expired_reqs_total", "counter", self.dropped["kv_expired"]
            ),
            "# TYPE vllm:cache_config_info gauge",
            f'vllm:cache_config_info{{block_size="{BLOCK_TOKENS}",enable_prefix_caching="False",'
            f'engine="0",kv_cache_size_tokens="{kv_capacity_tokens or None}"}} 1.0',
            *self._many("spillway_fake_dropped_total", "reason", self.dropped),
            *self._many("spillway_fake_reservations_total", "verdict", self.reservations),
            *self._one("spillway_fake_late_seconds_max", "gauge", f"{self.late_s_max:.6g}"),
        ]
        return "\n".join(lines) + "\n"

    def _one(self, name: str, kind: str, value: object) -> tuple[str, str]:
        return f"# TYPE {name} {kind}", f"{name}{{{self._label}}} {value}"

    def _many(self, name: str, label: str, counts: Counter[str]) -> Iterator[str]:
        yield f"# TYPE {name} counter"
        for value, count in sorted(counts.items()):
            yield f'{name}{{{self._label},{label}="{value}"}} {count}'
