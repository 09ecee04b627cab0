"""The page is Prometheus text with vLLM's names."""

import re

from spillway.fakeengine.metrics import EngineMetrics, Histogram
from spillway.wire.enginepages import CacheFacts, read_metrics

SAMPLE = re.compile(r'^([a-z_:]+)\{([a-z_]+="[^"]*",?)+\} (\S+)$')


def samples(page: str) -> dict[str, float]:
    """Parse a page; a line that is neither a comment nor a sample fails the test."""
    values = {}
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            continue
        match = SAMPLE.match(line)
        assert match, line
        key, _, value = line.rpartition(" ")
        assert key not in values
        values[key] = float(value)
    return values


def test_every_name_a_scraper_of_vllm_looks_for_is_there():
    metrics = EngineMetrics("fake")
    metrics.ttft.observe(0.05)
    metrics.dropped["kv_expired"] += 2
    values = samples(
        metrics.page(running=3, waiting=4, kv_used_tokens=250, kv_capacity_tokens=1000)
    )
    label = '{model_name="fake",engine="0"}'
    assert values[f"vllm:num_requests_running{label}"] == 3
    assert values[f"vllm:num_requests_waiting{label}"] == 4
    assert values[f"vllm:kv_cache_usage_perc{label}"] == 0.25
    assert values[f"vllm:prompt_tokens_total{label}"] == 0
    assert values[f"vllm:generation_tokens_total{label}"] == 0
    assert values[f"vllm:time_to_first_token_seconds_count{label}"] == 1
    assert values[f"vllm:inter_token_latency_seconds_count{label}"] == 0
    dropped = 'spillway_fake_dropped_total{model_name="fake",engine="0",reason="kv_expired"}'
    assert values[dropped] == 2
    assert values[f"vllm:nixl_num_kv_expired_reqs_total{label}"] == 2


def test_the_kv_cache_is_told_as_vllm_does():
    def told(kv_capacity_tokens):
        page = EngineMetrics("fake").page(
            running=0, waiting=0, kv_used_tokens=0, kv_capacity_tokens=kv_capacity_tokens
        )
        return read_metrics(page)

    assert told(1000) == CacheFacts(1000, 16, prefix_caching=False, has_nixl=True)
    assert told(0).kv_capacity_tokens is None


def test_buckets_are_cumulative_and_a_bound_belongs_to_its_bucket():
    histogram = Histogram((0.1, 0.2))
    for value_s in (0.05, 0.1, 0.15, 7.0):
        histogram.observe(value_s)
    assert list(histogram.lines("h", "a")) == [
        'h_bucket{a,le="0.1"} 2',
        'h_bucket{a,le="0.2"} 3',
        'h_bucket{a,le="+Inf"} 4',
        "h_sum{a} 7.3",
        "h_count{a} 4",
    ]


def test_a_model_name_is_escaped():
    page = EngineMetrics('a"b\\c').page(
        running=0, waiting=0, kv_used_tokens=0, kv_capacity_tokens=0
    )
    assert 'model_name="a\\"b\\\\c"' in page
