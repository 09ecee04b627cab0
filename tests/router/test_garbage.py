"""What has ended is freed at once.

The router lets its collector run only after tens of thousands of allocations, so whatever is held
by a cycle would pile up until then, its parsers and buffers with it.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import contextmanager

import pytest

OURS = "spillway."


@contextmanager
def cycles():
    """Count what of ours only a collector could free at the end of the block, by class."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(
            type(one).__name__ for one in gc.garbage if type(one).__module__.startswith(OURS)
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def test_questions_leave_no_cycle(bench, until) -> None:
    prefill, _, server = await bench.pair()
    await until(lambda: server.health.nodes["p0"].is_up)
    with cycles() as found:
        asked = len(prefill.gets)
        await until(lambda: len(prefill.gets) > asked + 5)
    assert found == {}


@pytest.mark.parametrize("policy", ["least-loaded", "deflect"])
async def test_requests_leave_no_cycle(bench, body, deflect, policy: str) -> None:
    _, _, server = await bench.pair(deflect() if policy == "deflect" else policy)
    await bench.ask(server, body)
    with cycles() as found:
        for _ in range(5):
            assert (await bench.ask(server, body)).complete
            await asyncio.sleep(0.01)
    assert found == {}


async def test_a_leg_that_is_dropped_while_it_connects_leaves_no_cycle(bench, until) -> None:
    _, _, server = await bench.pair()
    await until(lambda: server.health.nodes["d0"].is_up)
    pool = server.shell.pools["d0"]
    with cycles() as found:
        for _ in range(3):
            conn = pool.get(None, b"/health")
            conn.abort()
            del conn
            await asyncio.sleep(0.02)
    assert found == {}
