"""Three routers over the same four engines: nothing is lost, and no node takes more than it can."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque

import pytest

from spillway.wire.report import StepTaken

REQUESTS = 120
TARGET_S = 0.06


class Kept(deque):
    """The recent steps of a node, all of which are kept when a report takes them."""

    def __init__(self) -> None:
        super().__init__(maxlen=64)
        self.kept: list[StepTaken] = []

    def append(self, step: StepTaken) -> None:
        self.kept.append(step)
        super().append(step)


def draw(wish, seed: int) -> list:
    """Return a burst in which most prompts are long."""
    dice = random.Random(seed)
    return [
        wish(
            prompt_tokens=dice.randint(3000, 9000) if at % 3 else dice.randint(10, 300),
            output_tokens=dice.randint(2, 30),
            stream=at % 4 != 0,
            seed=1000 * seed + at,
        )
        for at in range(REQUESTS)
    ]


def asked(cluster) -> Counter[str]:
    """Return how often the nodes were asked for leave, by what they said."""
    kinds: Counter[str] = Counter()
    for server in cluster.servers:
        for (_, kind), count in server.shell.metrics.reservations.items():
            kinds[kind] += count
    return kinds


@pytest.mark.slow
async def test_three_routers_and_four_engines_under_a_burst(cluster, wish) -> None:
    await cluster.start("p0 p1 d0 d1", routers=3, engine={"time_scale": 0.3})
    steps = {}
    for name in ("d0", "d1"):
        node = cluster.engines[name].backend.node
        node.recent_steps = steps[name] = Kept()
    await cluster.until(
        lambda: all(
            report.routers == 3
            for server in cluster.servers
            for report in server.shell.last_reports.values()
        )
    )
    replies = await asyncio.gather(*[cluster.send(one) for one in draw(wish, 1)])
    for reply in replies:
        reply.check()
        assert reply.outcome == "finished"
    arrived = [server.shell.dispatcher.arrived for server in cluster.servers]
    assert arrived == [REQUESTS // 3] * 3
    kinds = asked(cluster)
    assert kinds["granted"] > 0
    assert kinds["backlog"] > 0
    assert set(kinds) <= {"granted", "backlog", "kv", "over_budget"}
    # What the nodes counted is what the routers were told.
    told: Counter[str] = Counter()
    for engine in cluster.engines.values():
        told.update(engine.backend.metrics.reservations)
    assert told == kinds
    # A deflected chunk never makes a step longer than its streams allow.
    sized = [
        step
        for kept in steps.values()
        for step in kept.kept
        if step.decode_seqs and step.prefill_tokens > 64  # a forced chunk is the smallest one
    ]
    assert sized
    assert max(step.predicted_s for step in sized) <= TARGET_S
    await settled(cluster)


async def settled(cluster) -> None:
    """Assert that all routers come to believe the same of every node: that it is empty."""

    def agree() -> bool:
        for server in cluster.servers:
            assert not server.shell.dispatcher.policy_failures
            for node in server.shell.dispatcher.ledger.nodes.values():
                view = node.view
                if node.outstanding or view.backlog_tokens or view.decode_seqs:
                    return False
                if view.kv_used_tokens:
                    return False
        return True

    await cluster.until(agree)


async def test_a_ledger_counts_what_another_router_has_sent(cluster, wish) -> None:
    await cluster.start("p0 d0", policy="colocated", routers=2, engine={"time_scale": 0.2})
    task = cluster.send(wish(prompt_tokens=30_000, output_tokens=2))
    await cluster.until(lambda: sum(server.shell.dispatcher.arrived for server in cluster.servers))
    other = next(one for one in cluster.servers if not one.shell.dispatcher.arrived)
    nodes = other.shell.dispatcher.ledger.nodes

    def heard() -> bool:
        return any(node.view.backlog_tokens > 10_000 for node in nodes.values())

    await cluster.until(heard)
    assert all(node.outstanding == 0 for node in nodes.values())
    task.cancel()


async def test_a_router_on_its_own_asks_nobody(cluster, wish) -> None:
    await cluster.start("p0 d0", policy="colocated")
    await cluster.ask(wish(prompt_tokens=500))
    assert not asked(cluster)
