"""INV-17: kernel, node and link agree with queueing theory on mean waiting times."""

from __future__ import annotations

import pytest

from builders import make_profile, make_spec
from spillway.core.types import Role
from spillway.sim.kernel import Kernel
from spillway.sim.link import Link
from spillway.sim.node import SimNode
from spillway.sim.residents import Job
from spillway.workload.seeds import stream

CUSTOMERS = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_prefill_node_with_equal_prompts_is_m_d_1(load: float) -> None:
    """Mean wait ρ·D/(2(1−ρ)): one prompt fills a step, and every step takes D."""
    service_s = 0.01
    profile = make_profile(
        step_base_s=service_s, token_hinges=(0,), token_s=(0.0,), kv_token_s=0.0, token_pair_s=0.0
    )
    node = SimNode(make_spec("p0", Role.PREFILL, profile=profile, step_tokens_max=100))
    rng, now_s, waited_s = stream(11, "arrivals"), 0.0, 0.0
    residents = []
    for index in range(CUSTOMERS):
        now_s += rng.expovariate(load / service_s)
        for outcome in node.advance(now_s):
            node.release_kv(outcome.resident.request_id, outcome.at_s)
        residents.append((now_s, node.submit_prefill(Job(f"r{index}", 100), now_s)))
    node.advance(now_s + 1e6)
    waited_s = sum(resident.started_s - arrived_s for arrived_s, resident in residents)
    expected_s = load * service_s / (2 * (1 - load))
    assert waited_s / CUSTOMERS == pytest.approx(expected_s, rel=0.06)
    assert node.steps == CUSTOMERS


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_link_with_equal_transfers_is_m_d_1(load: float) -> None:
    """Mean wait ρ·D/(2(1−ρ)) at a decode node whose KV comes from many prefill nodes."""
    spec = make_spec("d0", link_bytes_per_s=1e9, link_base_s=0.002)
    link, kv_bytes = Link(spec), 8_000_000
    service_s = 0.002 + kv_bytes / 1e9
    rng, now_s, waited_s = stream(12, "arrivals"), 0.0, 0.0
    for _ in range(CUSTOMERS):
        now_s += rng.expovariate(load / service_s)
        waited_s += link.take(now_s, kv_bytes, spec)[0] - now_s
    expected_s = load * service_s / (2 * (1 - load))
    assert waited_s / CUSTOMERS == pytest.approx(expected_s, rel=0.06)


@pytest.mark.slow
def test_a_link_under_the_kernel_with_exponential_sizes_is_m_m_1() -> None:
    """Mean time in system 1/(μ−λ), mean number in system ρ/(1−ρ)."""
    arrivals_per_s, services_per_s = 50.0, 100.0
    rate = 1e9
    spec = make_spec("p0", Role.PREFILL, link_bytes_per_s=rate, link_base_s=0.0)
    to = make_spec("d0", link_bytes_per_s=rate, link_base_s=0.0)
    kernel, link = Kernel(), Link(spec)
    arrivals, sizes = stream(3, "arrivals"), stream(3, "sizes")
    seen = {"inside": 0, "area": 0.0, "since_s": 0.0, "spent_s": 0.0}

    def change(by: int) -> None:
        seen["area"] += seen["inside"] * (kernel.now_s - seen["since_s"])
        seen["since_s"] = kernel.now_s
        seen["inside"] += by

    def arrive(left: int) -> None:
        change(1)
        kv_bytes = int(sizes.expovariate(services_per_s / rate))
        done_s = link.take(kernel.now_s, kv_bytes, to)[1]
        seen["spent_s"] += done_s - kernel.now_s
        kernel.at(done_s, change, -1)
        if left:
            kernel.at(kernel.now_s + arrivals.expovariate(arrivals_per_s), arrive, left - 1)

    kernel.at(0.0, arrive, CUSTOMERS - 1)
    kernel.run()
    load = arrivals_per_s / services_per_s
    assert seen["inside"] == 0
    assert seen["spent_s"] / CUSTOMERS == pytest.approx(
        1 / (services_per_s - arrivals_per_s), rel=0.06
    )
    assert seen["area"] / kernel.now_s == pytest.approx(load / (1 - load), rel=0.06)
