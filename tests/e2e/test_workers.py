"""`spillway serve --workers`: real processes behind one port, over engines with real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from e2e.asking import Reply, Wish, parse_events, parse_whole
from spillway.core.types import Role
from spillway.fakeengine.engine import EngineSettings, RunningEngine, start_engine

pytestmark = pytest.mark.slow

TOKEN = {"authorization": "Bearer t0ken"}
WAIT_S = 60.0


class Crew:
    """A supervisor process with its workers, and the engines behind them."""

    def __init__(self, profile: str, folder: Path) -> None:
        self._profile = profile
        self.folder = folder
        self.engines: dict[str, RunningEngine] = {}
        self.url = self.admin = ""
        self.process: asyncio.subprocess.Process
        self.session: aiohttp.ClientSession

    async def start(self, names: str = "p0 d0", workers: int = 2, time_scale: float = 1.0) -> None:
        for name in names.split():
            role = Role.PREFILL if name.startswith("p") else Role.DECODE
            settings = EngineSettings(
                role=role, node_id=name, profile=self._profile, time_scale=time_scale
            )
            self.engines[name] = await start_engine(settings)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=60.0),
        )
        self.write(names, workers)
        with (self.folder / "log").open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spillway", "serve", "--config", str(self.config)),
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        line = (await asyncio.wait_for(self.process.stdout.readline(), WAIT_S)).decode()
        self.url = line.split()[-1]
        said = (self.folder / "log").read_text()
        self.admin = said[said.index("http://") :].partition("/dashboard")[0]

    @property
    def config(self) -> Path:
        return self.folder / "cluster.json"

    def write(self, names: str, workers: int) -> None:
        nodes: dict[str, list[dict[str, Any]]] = {"prefill": [], "decode": []}
        for name in names.split():
            pool = nodes["prefill" if name.startswith("p") else "decode"]
            pool.append({"name": name, "url": self.engines[name].url})
        config = {
            "nodes": nodes,
            "defaults": {"profile": self._profile},
            "router": {
                "port": 0,
                "admin_port": 0,
                "admin_token": "t0ken",
                "workers": workers,
                "decision_log_path": str(self.folder / "decisions"),
                "drain_s": 20,
                "config_watch_s": 3600,
            },
        }
        self.config.write_text(json.dumps(config))

    async def ask(self, wish: Wish) -> Reply:
        reply = Reply(wish, "")
        async with self.session.post(self.url + wish.path, json=wish.body) as answer:
            reply.status = answer.status
            reply.headers = {name.lower(): value for name, value in answer.headers.items()}
            reply.raw = await answer.read()
        (parse_events if wish.stream and reply.status == 200 else parse_whole)(reply)
        return reply

    async def page(self, path: str) -> tuple[int, bytes]:
        async with self.session.get(self.admin + path, headers=TOKEN) as answer:
            return answer.status, await answer.read()

    async def samples(self) -> dict[str, float]:
        _, body = await self.page("/metrics")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def total(self, start: str) -> dict[str, float]:
        """Return the samples of one name, by worker."""
        sums: dict[str, float] = {}
        for name, value in (await self.samples()).items():
            if name.startswith(start + "{"):
                worker = name.partition('worker="')[2].partition('"')[0]
                sums[worker] = sums.get(worker, 0.0) + value
        return sums

    def children(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    async def until(self, holds: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not await holds():
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
            await asyncio.wait_for(self.process.wait(), WAIT_S)
        await self.session.close()
        for engine in self.engines.values():
            await engine.close()


@pytest.fixture
async def crew(fast_profile: str, tmp_path: Path) -> AsyncIterator[Crew]:
    made = Crew(fast_profile, tmp_path)
    yield made
    await made.close()


async def test_three_workers_and_four_engines_under_a_burst(crew: Crew) -> None:
    await crew.start("p0 p1 d0 d1", workers=3, time_scale=0.3)
    wishes = [
        Wish(prompt_tokens=6000 if at % 3 else 100, output_tokens=12, stream=at % 4 > 0, seed=at)
        for at in range(90)
    ]
    replies = await asyncio.gather(*map(crew.ask, wishes))
    for reply in replies:
        reply.check()
        assert reply.outcome == "finished"
    ended = await crew.total("spillway_requests_total")
    assert sum(ended.values()) == len(wishes)
    assert len(ended) == 3  # the kernel gave some to each
    asked = await crew.total("spillway_reservations_total")
    told = [engine.backend.metrics.reservations for engine in crew.engines.values()]
    assert sum(asked.values()) == sum(map(sum, (one.values() for one in told))) > 0

    async def quiet() -> bool:
        samples = await crew.samples()
        names = ("spillway_node_backlog_tokens", "spillway_node_decode_seqs", "spillway_inflight")
        return not any(value for name, value in samples.items() if name.startswith(names))

    await crew.until(quiet)
    _, page = await crew.page("/admin/nodes")
    assert [node["outstanding"] for node in json.loads(page)["nodes"]] == [0, 0, 0, 0]


async def test_a_worker_that_dies_is_started_again_and_the_rest_serves_on(crew: Crew) -> None:
    await crew.start()
    before = crew.children()
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)

    async def back() -> bool:
        # One answer for both: until the death is noticed, both workers count as running.
        samples = await crew.samples()
        return samples["spillway_worker_restarts_total"] == 1 and samples["spillway_workers"] == 2

    await crew.until(back)
    after = crew.children()
    assert len(after) == 2
    assert before[0] not in after
    assert before[1] in after
    replies = await asyncio.gather(*[crew.ask(Wish(seed=at)) for at in range(20)])
    assert {reply.outcome for reply in replies} == {"finished"}
    status, body = await crew.page("/health")
    assert (status, json.loads(body)["workers"]) == (200, 2)


async def test_signals_reach_every_worker(crew: Crew) -> None:
    await crew.start("p0 d0 d1")
    crew.write("p0 d0", workers=2)
    crew.process.send_signal(signal.SIGHUP)

    async def reloaded() -> bool:
        _, page = await crew.page("/admin/nodes")
        done = await crew.total("spillway_reloads_total")
        return len(json.loads(page)["nodes"]) == 2 and sum(done.values()) == 2

    await crew.until(reloaded)
    # What runs when the signal to stop comes is finished, whoever has it.
    slow = [
        asyncio.ensure_future(crew.ask(Wish(output_tokens=400, seed=at, stream=True)))
        for at in range(12)
    ]

    async def running() -> bool:
        return sum((await crew.total("spillway_inflight")).values()) == 12

    await crew.until(running)
    crew.process.terminate()
    replies = await asyncio.gather(*slow)
    assert {reply.outcome for reply in replies} == {"finished"}
    assert await asyncio.wait_for(crew.process.wait(), WAIT_S) == 0
    lines = (crew.folder / "decisions").read_bytes().splitlines()
    assert len(lines) >= 12
    assert len({json.loads(line)["logged"]["request"]["request_id"] for line in lines}) == 12


async def test_operators_are_served_for_all_and_need_the_token_to_change(crew: Crew) -> None:
    await crew.start("p0 d0 d1")
    async with crew.session.post(crew.admin + "/admin/nodes/d1/drain") as answer:
        assert answer.status == 401
    async with crew.session.post(crew.admin + "/admin/nodes/d1/drain", headers=TOKEN) as answer:
        assert answer.status == 200
    usable = 'spillway_node_usable{worker="%d",node="d1",role="decode"}'

    async def drained() -> bool:
        samples = await crew.samples()
        return [samples[usable % worker] for worker in (0, 1)] == [0, 0]

    await crew.until(drained)
    async with crew.session.get(crew.admin + "/metrics") as answer:
        assert answer.status == 401
    assert (await crew.page("/admin/nope"))[0] == 404
    async with crew.session.get(crew.url + "/metrics", headers=TOKEN) as answer:
        assert answer.status == 404  # one worker's page, of which there are several
    assert (await crew.page("/dashboard/data"))[0] == 200
    assert (await crew.page("/dashboard"))[0] == 200
