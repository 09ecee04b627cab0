"""A whole cluster of real processes on loopback: fake engines, and a router in front of them.

Every process is started here, watched until it is ready, and ended by its pid on every way out:
the end of the block, an error, Ctrl-C. Should this process die without a chance to do so, the
children see their standard input close and end themselves (`parent.py`).
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from spillway.cli.parent import READY_LINE
from spillway.core.errors import ConfigError, NodeError
from spillway.fakeengine.records import EngineRecord, read_records

READY_S_MAX = 30.0  # from start to ready line; a busy machine takes seconds to import everything
HEALTHY_S_MAX = 15.0  # until the router has found its engines
HEALTH_INTERVAL_S = 0.05
END_S_MAX = 5.0  # from SIGTERM to SIGKILL
NODES_MAX = 64  # processes on one machine


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """What to start. folder: for logs and engine records; port: the router's, 0 for a free one.

    bias_frac, noise_frac: what the engines' steps really cost, against the profile.
    tbt_margin_frac: below the usual 0.9, because the processes share a machine's few cores and a
        step may end some milliseconds late.
    """

    folder: Path
    prefill_count: int
    decode_count: int
    policy: str
    profile: str
    slo_ttft_s: float
    slo_tbt_s: float
    port: int = 0
    seed: int = 1
    bias_frac: float = 1.0
    noise_frac: float = 0.0
    tbt_margin_frac: float = 0.8
    stock: bool = False

    def __post_init__(self) -> None:
        nodes = self.prefill_count + self.decode_count
        if nodes > NODES_MAX:
            raise ConfigError(f"--cluster: {nodes} engines; at most {NODES_MAX} on one machine")

    def engine_arguments(self, name: str, role: str) -> list[str]:
        """Return the command line of one engine."""
        arguments = [
            *("engine", "--role", role, "--name", name, "--port", "0"),
            *("--profile", self.profile, "--seed", str(self.seed)),
            *("--slo-tbt-s", str(self.slo_tbt_s), "--tbt-margin", str(self.tbt_margin_frac)),
            *("--bias", str(self.bias_frac), "--noise", str(self.noise_frac)),
            *("--records", str(self.records_path(name))),
        ]
        return [*arguments, "--stock"] if self.stock else arguments

    def router_arguments(
        self, prefill_urls: Sequence[str], decode_urls: Sequence[str]
    ) -> list[str]:
        """Return the command line of the router."""
        return [
            *("serve", "--port", str(self.port), "--policy", self.policy),
            *("--profile", self.profile, "--tbt-margin", str(self.tbt_margin_frac)),
            *("--slo-ttft-s", str(self.slo_ttft_s), "--slo-tbt-s", str(self.slo_tbt_s)),
            *(part for url in prefill_urls for part in ("--prefill", url)),
            *(part for url in decode_urls for part in ("--decode", url)),
        ]

    def records_path(self, name: str) -> Path:
        return self.folder / f"{name}.records.jsonl"


class LocalCluster:
    """The running cluster. Use it as `async with LocalCluster(plan) as cluster`.

    url: the router's. engine_urls: by node name, prefill nodes first.
    Raises NodeError when a process does not come up, with the last line it wrote.
    """

    def __init__(self, plan: ClusterPlan) -> None:
        self.plan = plan
        self.url = ""
        self.engine_urls: dict[str, str] = {}
        self._children: list[_Child] = []

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._end()

    def pids(self) -> dict[str, int]:
        """Return the process id of each engine that was started, by node name."""
        return {child.name: child.process.pid for child in self._children[:-1]}

    def records(self) -> list[EngineRecord]:
        """Return what the engines wrote about their requests; complete once they have ended."""
        return [
            record
            for name in self.engine_urls
            for record in read_records(self.plan.records_path(name))
        ]

    async def watch(self, tell: Callable[[str], None]) -> None:
        """Tell of every engine that ends by itself. Raises NodeError when the router does."""
        *engines, router = self._children
        waits = {asyncio.create_task(child.process.wait()): child for child in self._children}
        try:
            while router.process.returncode is None:
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for child in [waits.pop(wait) for wait in done]:
                    if child in engines:
                        tell(child.last_words())
        finally:
            for wait in waits:
                wait.cancel()
        router.check()

    async def _start(self) -> None:
        plan = self.plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        roles = {f"p{i}": "prefill" for i in range(plan.prefill_count)}
        roles |= {f"d{i}": "decode" for i in range(plan.decode_count)}
        engines = [
            await self._child(name, plan.engine_arguments(name, role))
            for name, role in roles.items()
        ]
        urls = await asyncio.gather(*(engine.ready_url() for engine in engines))
        self.engine_urls = dict(zip(roles, urls, strict=True))
        pools: dict[str, list[str]] = {"prefill": [], "decode": []}
        for name, url in self.engine_urls.items():
            pools[roles[name]].append(url)
        router = await self._child(
            "router", plan.router_arguments(pools["prefill"], pools["decode"])
        )
        self.url = await router.ready_url()
        await self._until_healthy(router)

    async def _child(self, name: str, arguments: Sequence[str]) -> _Child:
        child = await _Child.start(name, arguments, self.plan.folder / f"{name}.log")
        self._children.append(child)
        return child

    async def _until_healthy(self, router: _Child) -> None:
        """Return when the router can use every engine, and deflect to every decode engine."""
        loop = asyncio.get_running_loop()
        due_s = loop.time() + HEALTHY_S_MAX
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session:
            while loop.time() < due_s:
                router.check()
                try:
                    async with session.get(f"{self.url}/health") as answer:
                        if answer.status == 200 and self._complete(await answer.json()):
                            return
                except (aiohttp.ClientError, TimeoutError):
                    pass  # not up yet: asked again until due_s, and then it is an error
                await asyncio.sleep(HEALTH_INTERVAL_S)
        raise NodeError(
            f"the router did not find all its engines within {HEALTHY_S_MAX:g} s; "
            f"see {router.log_path}"
        )

    def _complete(self, health: dict[str, int]) -> bool:
        plan = self.plan
        deflectable = 0 if plan.stock else plan.decode_count
        return (
            health["prefill_nodes_usable"] == plan.prefill_count
            and health["decode_nodes_usable"] == plan.decode_count
            and health["decode_nodes_deflectable"] >= deflectable
        )

    async def _end(self) -> None:
        await asyncio.gather(*(child.end() for child in reversed(self._children)))
        self._children.clear()


class _Child:
    """One process, ours alone to end."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self.name = name
        self.process = process
        self.log_path = log_path
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, name: str, arguments: Sequence[str], log_path: Path) -> _Child:
        with log_path.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "spillway", *arguments, "--end-with-parent"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end them in order
            )
        return cls(name, process, log_path)

    async def ready_url(self) -> str:
        """Return the URL of the ready line. Raises NodeError if none comes in time."""
        try:
            async with asyncio.timeout(READY_S_MAX):
                return await self._read_ready()
        except TimeoutError:
            raise NodeError(
                f"{self.name} was not ready within {READY_S_MAX:g} s; see {self.log_path}"
            ) from None

    async def _read_ready(self) -> str:
        stdout = self.process.stdout
        assert stdout is not None
        while line := await stdout.readline():
            if found := READY_LINE.search(line.decode(errors="replace")):
                self._reader = asyncio.create_task(_discard(stdout))
                return found[1]
        await self.process.wait()
        self.check()
        raise NodeError(f"{self.name} closed its output before it was ready; see {self.log_path}")

    def check(self) -> None:
        """Raise NodeError with the process's last words if it has ended."""
        if self.process.returncode is not None:
            raise NodeError(self.last_words())

    def last_words(self) -> str:
        """Return how a process that has ended did so."""
        lines = self.log_path.read_text(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        return f"{self.name} ended by itself (exit code {self.process.returncode}){said}"

    async def end(self) -> None:
        """End the process: politely, then for certain."""
        if self.process.returncode is None:
            self._send(signal.SIGTERM)
            try:
                async with asyncio.timeout(END_S_MAX):
                    await self.process.wait()
            except TimeoutError:
                self._send(signal.SIGKILL)
                await self.process.wait()
        if self._reader is not None:
            await self._reader

    def _send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has just ended, which is what was wanted
            self.process.send_signal(number)


async def _discard(stdout: asyncio.StreamReader) -> None:
    """Keep the pipe empty, so that the process can never block on it."""
    while await stdout.read(65536):
        pass
