"""KV is held until it is taken, or until its lease ends."""

import asyncio

from spillway.fakeengine.leases import Leases


async def test_a_lease_is_taken_once():
    released = []
    leases = Leases(asyncio.get_running_loop(), 30.0, released.append)
    leases.hold("r1", 100)
    assert leases.take("r1") == 100
    assert leases.take("r1") is None
    assert released == []


async def test_a_lease_that_runs_out_releases_its_kv_once():
    loop = asyncio.get_running_loop()
    released = loop.create_future()
    leases = Leases(loop, 0.001, released.set_result)
    expires_at_s = leases.hold("r1", 100)
    assert await asyncio.wait_for(released, 1.0) == "r1"
    assert loop.time() >= expires_at_s - 1e-3
    assert leases.take("r1") is None


async def test_close_forgets_without_releasing():
    released = []
    leases = Leases(asyncio.get_running_loop(), 0.001, released.append)
    leases.hold("r1", 100)
    leases.close()
    await asyncio.sleep(0.005)
    assert released == []
    assert len(leases) == 0
