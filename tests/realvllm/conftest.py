"""A real vLLM cluster for each test file.

Collected only where vLLM is installed (`make test-vllm`). A file says in PLAN what it needs; its
cluster starts with its first test and ends with its last, one cluster at a time.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from spillway.vllmcluster.cluster import VllmCluster
from spillway.vllmcluster.plan import VllmPlan

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One event loop for all: clusters and routers outlive a test."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(600))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmCluster]:
    folder = tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])
    plan = VllmPlan(folder=folder, python=Path(sys.executable), **request.module.PLAN)
    async with VllmCluster(plan) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=240.0)
    async with aiohttp.ClientSession(timeout=timeout) as opened:
        yield opened
