"""Routers between mock nodes: what a round requires of them before it believes a figure."""

import shutil
import sys

import pytest

pytestmark = [
    pytest.mark.slow,  # compiles the mocks, starts the router
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler answers to `cc`"),
    pytest.mark.skipif(sys.platform != "linux", reason="the mocks are built on epoll"),
]


@pytest.mark.parametrize("separate", [True, False])
def test_this_router_runs_every_load_with_the_legs_it_should_have(separate):
    import rig
    from routers import spillway

    with rig.running([spillway()], separate=separate, pinned=False, chunks=4) as one:
        one.space_events(500)
        _direct, ours = one.subjects
        seen, cpu_us = rig.run_load(one, ours, rate=50, duration_s=0.2, stream=True)
        legs = (one.sent("prefill"), one.sent("pulled"), one.sent("local"))
        memory_bytes = rig.memory_bytes(ours)
    assert seen.events == 4 * seen.completed > 0
    assert cpu_us > 0
    assert memory_bytes > 1e6
    requests = seen.sent + 1  # and the one that asks whether the router is ready
    assert legs == ((requests, requests, 0) if separate else (0, 0, requests))


def test_a_router_that_skips_a_leg_gives_no_figure():
    import rig
    from mocks import BenchError

    with rig.running([], separate=True, pinned=False, relay=True, chunks=2) as one:
        _direct, relay = one.subjects
        pretender = relay._replace(legs=True)
        with pytest.raises(BenchError, match="0 prefill legs, not"):
            rig.run_load(one, pretender, rate=50, duration_s=0.1)


def test_a_router_that_does_not_start_is_an_error_that_quotes_it():
    import rig
    from mocks import BenchError
    from routers import Router

    def command(_port, _metrics_port, _pools):
        return [sys.executable, "-c", "import sys; sys.exit('no such flag')"]

    broken = Router("broken", "1", command)
    with (
        pytest.raises(BenchError, match=r"broken did not start.*no such flag"),
        rig.running([broken], separate=True, pinned=False),
    ):
        pass
