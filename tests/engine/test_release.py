"""Held KV is freed early through vLLM's own leases: its schedulers, both halves of its connector.

`make test-vllm` runs these, with each release it has; elsewhere they are skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm.v1", reason="vLLM is not installed here; make test-vllm runs this")
pytest.importorskip("nixl", reason="NIXL is not installed here; make test-vllm runs this")

from spillway.engine.scheduler import make
from spillway.wire.kvparams import HeldKv
from vllmrig import Rig

STEPS_MAX = 6  # within which a lease that was ended is gone, asynchronous engines included
MakeRig = Callable[..., Rig]


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    one = Rig(
        make, tmp_path, asynchronous=request.param, sending=True, spillway={"role": "prefill"}
    )
    yield one
    assert one.scheduler.spillway.errors == 0
    one.close()


def prefill(rig: Rig, *names: str) -> None:
    """Prefill prompts for another engine, until their KV is held under leases."""
    for name in names:
        rig.add(name, 500, 1, held=True)
    rig.run(20, until=lambda: all(name in rig.worker._reqs_to_send for name in names))
    for _ in range(3):
        rig.step()
    assert held(rig) == set(names)
    assert rig.scheduler.kv_cache_manager.usage > 0


def held(rig: Rig) -> set[str]:
    return set(rig.scheduler.requests)


def end_lease(rig: Rig, name: str, engine_id: str = "") -> None:
    engine_id = engine_id or rig.scheduler.connector.connector_scheduler.engine_id
    rig.scheduler.spillway._end_leases(deque([HeldKv(engine_id, name)]))


def steps(rig: Rig, count: int = STEPS_MAX) -> None:
    for _ in range(count):
        rig.step()


def nothing_is_left(rig: Rig) -> bool:
    scheduler, worker = rig.scheduler, rig.worker
    return (
        not scheduler.requests
        and scheduler.kv_cache_manager.usage == 0
        and not worker._reqs_to_send
        and not worker._reqs_to_process
    )


def test_kv_that_nobody_fetches_is_free_within_a_few_steps(rig: Rig) -> None:
    prefill(rig, "a")
    end_lease(rig, "a")
    steps(rig)
    assert nothing_is_left(rig)
    assert not rig.scheduler.has_requests()
    prefill(rig, "b")  # and the engine goes on


def test_without_that_it_stays(rig: Rig) -> None:
    prefill(rig, "a")
    steps(rig, 50)
    assert held(rig) == {"a"}


def test_kv_that_was_fetched_is_not_freed_again(rig: Rig) -> None:
    prefill(rig, "a")
    rig.worker.fetched.append("a")
    end_lease(rig, "a")  # the scheduler does not know yet that it was fetched
    steps(rig)
    end_lease(rig, "a")  # now it does
    steps(rig)
    assert nothing_is_left(rig)


def test_a_lease_may_be_ended_twice(rig: Rig) -> None:
    prefill(rig, "a")
    end_lease(rig, "a")
    end_lease(rig, "a")
    rig.step()
    end_lease(rig, "a")
    steps(rig)
    end_lease(rig, "a")
    steps(rig)
    assert nothing_is_left(rig)


def test_a_lease_can_be_ended_before_the_workers_have_heard_of_it(rig: Rig) -> None:
    rig.add("a", 500, 1, held=True)
    rig.run(20, until=lambda: rig.scheduler.requests["a"].is_finished())
    end_lease(rig, "a")
    steps(rig)
    assert nothing_is_left(rig)


def test_a_prompt_that_is_still_computed_is_left_alone(rig: Rig) -> None:
    rig.add("a", 5000, 1, held=True)
    rig.step()
    end_lease(rig, "a")
    rig.run(20, until=lambda: "a" in rig.worker._reqs_to_send)
    steps(rig)
    assert held(rig) == {"a"}


def test_only_what_is_named_goes(rig: Rig) -> None:
    prefill(rig, "a", "b")
    end_lease(rig, "a")
    end_lease(rig, "never was")
    end_lease(rig, "b", engine_id="an engine's earlier life")
    steps(rig)
    assert held(rig) == {"b"}


def test_a_request_that_decodes_here_is_none_that_is_held(rig: Rig) -> None:
    rig.add("a", 100, 50)
    steps(rig, 3)
    end_lease(rig, "a")
    rig.run(100)
    assert rig.outputs["a"] >= 50


def test_what_others_wait_for_is_not_held_up(rig: Rig) -> None:
    """Older releases end leases in order: what stands behind another goes when that is fetched."""
    prefill(rig, "a", "b")
    end_lease(rig, "b")
    steps(rig)
    assert "a" in held(rig)
    rig.worker.fetched.append("a")
    steps(rig)
    assert nothing_is_left(rig)


def test_the_report_says_that_it_can_be_done(rig: Rig) -> None:
    plugin = rig.scheduler.spillway
    assert plugin.reporter.make(plugin._view, 0, None, "", 0).releases
