"""Reports: how often, to whom, and what happens to a reader that is too slow."""

import asyncio
from collections import Counter

import pytest

from spillway.core.types import Role
from spillway.fakeengine.reports import (
    LINES_MAX,
    REPORT_INTERVAL_S,
    ReportPublisher,
    Subscription,
)
from spillway.wire.report import NodeReport, decode


def make_report(seq: int) -> NodeReport:
    return NodeReport(
        node_id="d0",
        role=Role.DECODE,
        seq=seq,
        step=0,
        backlog_prompts=0,
        backlog_tokens=0,
        backlog_token_pairs=0.0,
        decode_seqs=0,
        kv_used_tokens=0,
        kv_capacity_tokens=10,
    )


@pytest.fixture
async def publisher():
    made = ReportPublisher(make_report, Counter(), asyncio.get_running_loop())
    yield made
    made.close()


def seqs(lines: bytes) -> list[int]:
    return [decode(line).seq for line in lines.splitlines()]


async def test_a_subscriber_hears_at_once_and_then_only_of_changes(publisher):
    with publisher.subscribe() as subscription:
        assert seqs(await subscription.next_lines()) == [1]
        for _ in range(50):
            publisher.changed()
        assert seqs(await asyncio.wait_for(subscription.next_lines(), 1.0)) == [2]


async def test_changes_are_reported_no_faster_than_the_interval(publisher):
    loop = asyncio.get_running_loop()
    with publisher.subscribe() as subscription:
        await subscription.next_lines()
        began_s = loop.time()
        heard = 0
        while loop.time() - began_s < 2.5 * REPORT_INTERVAL_S:
            publisher.changed()
            await asyncio.sleep(0.001)
            if subscription._ready.is_set():
                heard += len(seqs(await subscription.next_lines()))
        elapsed_s = loop.time() - began_s
    assert 1 <= heard <= elapsed_s / REPORT_INTERVAL_S + 1


async def test_without_subscribers_nothing_is_made(publisher):
    publisher.changed()
    assert publisher._seq == 0


async def test_close_ends_every_subscription(publisher):
    with publisher.subscribe() as subscription:
        publisher.close()
        assert await subscription.next_lines() == b""


async def test_a_slow_reader_loses_the_oldest_lines_and_they_are_counted():
    dropped = Counter()
    subscription = Subscription(dropped)
    for number in range(LINES_MAX + 3):
        subscription.put(b"%d\n" % number)
    lines = (await subscription.next_lines()).split()
    assert [int(line) for line in lines] == list(range(3, LINES_MAX + 3))
    assert dropped["report_line"] == 3
