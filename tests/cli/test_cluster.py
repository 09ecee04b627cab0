"""A cluster of real processes: it comes up, serves, tells of deaths, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from spillway.cli.cluster import ClusterPlan, LocalCluster
from spillway.core.errors import ConfigError, NodeError

pytestmark = pytest.mark.slow  # interpreters start


def plan(folder: Path, **changes: Any) -> ClusterPlan:
    fields: dict[str, Any] = {
        "folder": folder,
        "prefill_count": 1,
        "decode_count": 1,
        "policy": "headroom",
        "profile": "llama-3.1-8b-a100",
        "slo_ttft_s": 1.0,
        "slo_tbt_s": 0.06,
    }
    return ClusterPlan(**(fields | changes))


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def ask(url: str) -> tuple[int, str]:
    body = {"model": "fake-llama", "prompt": [1, 2, 3], "max_tokens": 2}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body) as answer,
    ):
        return answer.status, await answer.text()


async def test_it_serves_records_and_leaves_nothing_behind(tmp_path: Path) -> None:
    told: list[str] = []
    async with LocalCluster(plan(tmp_path)) as cluster:
        pids = cluster.pids()
        assert set(pids) == set(cluster.engine_urls) == {"p0", "d0"}
        status, text = await ask(cluster.url)
        assert status == 200, text
        watch = asyncio.create_task(cluster.watch(told.append))
        os.kill(pids["p0"], signal.SIGKILL)
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.01)
        watch.cancel()
    assert told == [f"p0 ended by itself (exit code -{int(signal.SIGKILL)})"]
    assert not any(is_alive(pid) for pid in pids.values())
    legs = sorted((one.node_id, one.leg, one.outcome) for one in cluster.records())
    assert ("d0", "decode", "finished") in legs


async def test_an_error_in_the_block_ends_the_processes(tmp_path: Path) -> None:
    pids: dict[str, int] = {}

    async def fail() -> None:
        async with LocalCluster(plan(tmp_path)) as cluster:
            pids.update(cluster.pids())
            raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        await fail()
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids.values())


async def test_a_process_that_does_not_come_up_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"[pd]0 ended by itself \(exit code 2\): .*profile 'nope'"):
        async with LocalCluster(plan(tmp_path, profile="nope")):
            pytest.fail("it cannot have come up")


def test_a_machine_has_room_for_so_many(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 64"):
        plan(tmp_path, decode_count=64)
