"""A whole cluster on loopback: real fake engines, the real router, and a client that checks all.

Everything runs in one event loop (uvloop, as in production). The engines' steps take one to five
milliseconds, so that a test ends soon and a burst of long prompts still makes a queue.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
import uvloop

from e2e.asking import MODEL, Reply, Wish, parse_events, parse_whole
from e2e.wire import PATIENCE_S, Wire
from spillway.core.dispatcher import DispatchLimits
from spillway.core.lifecycle import State
from spillway.core.policies import build_policy
from spillway.core.types import NodeSpec, Role, Slo
from spillway.fakeengine.engine import EngineSettings, RunningEngine, start_engine
from spillway.router.app import Server, serve
from spillway.router.settings import Classes, RouterSettings
from spillway.wire.profile import Coefficients, ProfileFile, Provenance, write_profile_file

LEASE_S = 4.0  # of prefilled KV; a test that waits for its end sets a shorter one
FAST_ROUTER = {
    "health_interval_s": 0.05,
    "health_timeout_s": 1.0,
    "sweep_s": 0.05,
    "drain_s": 0.05,
    "connect_s": 1.0,
    "report_retry_first_s": 0.02,
    "report_retry_max_s": 0.05,
}


def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def fast_profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A profile file: 1 ms for a decode step, 5 ms for a step full of prompt."""
    told = Provenance(
        source="made up",
        model=MODEL,
        gpu="none",
        tensor_parallel=1,
        engine="fake",
        engine_version="0",
        dtype="bf16",
        date="2026-01-01",
    )
    law = Coefficients(
        step_base_s=1e-3, token_hinges=(0,), token_s=(2e-6,), kv_token_s=1e-10, token_pair_s=1e-12
    )
    profile = ProfileFile(
        schema_version=1,
        name="fast",
        coefficients=law,
        kv_bytes_per_token=100_000,
        provenance=told,
        kv_capacity_tokens=400_000,
    )
    path = tmp_path_factory.mktemp("profile") / "fast.json"
    write_profile_file(path, profile)
    return str(path)


# --- the cluster -------------------------------------------------------------------------------


class Cluster:
    """Engines by name (p0, p1, d0, d1), a router, and a client session.

    dead: the engines that were killed, as they were; their figures still count.
    servers: every router; requests go to them in turn. `server` is the first.
    """

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._settings: dict[str, EngineSettings] = {}
        self.engines: dict[str, RunningEngine] = {}
        self.dead: list[RunningEngine] = []
        self.server: Server
        self.servers: list[Server] = []
        self.session: aiohttp.ClientSession
        self._asked = 0
        self._tasks: list[asyncio.Task[Reply]] = []
        self._wires: list[Wire] = []

    async def start(
        self,
        names: str = "p0 p1 d0 d1",
        policy: str | object = "headroom",
        *,
        engine: dict[str, Any] | None = None,
        by_name: dict[str, dict[str, Any]] | None = None,
        spec: dict[str, Any] | None = None,
        limits: DispatchLimits = DispatchLimits(),  # noqa: B008 - frozen
        keep_alive: bool = True,
        routers: int = 1,
        **router: Any,
    ) -> None:
        """Start engines, the router, and wait until it knows all of them.

        engine, by_name: settings of all engines, of single ones. spec: what the router believes
        instead. keep_alive: whether the client uses connections again.
        """
        for name in names.split():
            role = Role.PREFILL if name.startswith("p") else Role.DECODE
            changes = {**(engine or {}), **(by_name or {}).get(name, {})}
            self._settings[name] = EngineSettings(
                **{"role": role, "node_id": name, "profile": self._profile, "lease_s": LEASE_S}
                | changes
            )
            await self.restart(name)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not keep_alive),
            timeout=aiohttp.ClientTimeout(total=30.0),
        )
        for _ in range(routers):
            server = await serve(
                [(self._spec(name, spec or {}), self.engines[name].url) for name in self.engines],
                build_policy(policy) if isinstance(policy, str) else policy,
                classes=Classes({"default": Slo(1.0, 0.06)}),
                limits=limits,
                settings=RouterSettings(port=0, **{**FAST_ROUTER, **router}),
            )
            self.servers.append(server)
        self.server = self.servers[0]
        await self.until(lambda: all(map(self._all_known, self.servers)))

    def _spec(self, name: str, changes: dict[str, Any]) -> NodeSpec:
        return replace(self._settings[name].spec(name), **changes)

    def _all_known(self, server: Server) -> bool:
        views = [node.view for node in server.shell.dispatcher.ledger.nodes.values()]
        stock = {name for name, settings in self._settings.items() if settings.stock}
        reported = all(view.reporting for view in views if view.node_id not in stock)
        return reported and all(node.is_up for node in server.health.nodes.values())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wire in self._wires:
            wire.close()
        if hasattr(self, "session"):
            await self.session.close()
        for server in self.servers:
            await server.close()
        for engine in self.engines.values():
            await engine.close()

    async def kill(self, name: str) -> RunningEngine:
        """Let an engine die as a killed process would."""
        engine = self.engines.pop(name)
        self._settings[name] = replace(self._settings[name], port=engine.port)
        self.dead.append(engine)
        await engine.kill()
        return engine

    async def restart(self, name: str) -> None:
        """Start an engine, on the port that it had before if it did."""
        self.engines[name] = await start_engine(self._settings[name])

    # --- asking --------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.servers[self._asked % len(self.servers)].port}"

    def send(self, wish: Wish, **options: Any) -> asyncio.Task[Reply]:
        """Ask in the background."""
        task = asyncio.ensure_future(self.ask(wish, **options))
        self._tasks.append(task)
        return task

    async def ask(self, wish: Wish, *, first: asyncio.Event | None = None, **headers: str) -> Reply:
        """Send one request and return its whole answer. first: set when the first byte came."""
        self._asked += 1
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = Reply(wish, named.setdefault("x-request-id", f"e2e-{self._asked}"))
        parts: list[bytes] = []
        try:
            async with self.session.post(
                self.url + wish.path, json=wish.body, headers=named
            ) as answer:
                reply.status = answer.status
                reply.headers = {name.lower(): value for name, value in answer.headers.items()}
                async for data in answer.content.iter_any():
                    parts.append(data)
                    if first is not None:
                        first.set()
        except aiohttp.ClientError as error:
            reply.broken = repr(error)
        reply.raw = b"".join(parts)
        if not reply.broken:
            is_stream = reply.headers["content-type"].startswith("text/event-stream")
            assert is_stream == (wish.stream and reply.status == 200)
            (parse_events if is_stream else parse_whole)(reply)
        return reply

    async def wire(self, receive_bytes: int = 0) -> Wire:
        """Open a bare connection to the router. receive_bytes: its receive buffer, if not 0."""
        wire = await Wire.open(self.server.port, receive_bytes)
        self._wires.append(wire)
        return wire

    async def page(self, path: str) -> tuple[int, bytes]:
        async with self.session.get(self.url + path) as answer:
            return answer.status, await answer.read()

    async def decisions(self, request_id: str) -> list[dict[str, Any]]:
        """Return the decisions about one request, the newest first."""
        status, body = await self.page(f"/debug/decisions?id={request_id}")
        return json.loads(body)["decisions"] if status == 200 else []

    async def metrics(self) -> dict[str, float]:
        """Return every sample of the router's page."""
        _, body = await self.page("/metrics")
        lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    # --- looking -------------------------------------------------------------------------------

    @property
    def ledger(self):
        return self.server.shell.dispatcher.ledger.nodes

    @property
    def counts(self) -> dict[str, int]:
        """Return the dispatcher's requests by state."""
        return {state.name: self.server.shell.dispatcher.counts[state] for state in State}

    def legs(self, *names: str) -> int:
        """Return how many requests the named engines have taken, this life."""
        return sum(self.engines[name].backend._requests for name in names)

    def flights(self, name: str) -> int:
        """Return how many requests an engine's node works on."""
        return self.engines[name].backend.pace.flights

    def addresses(self) -> re.Pattern[str]:
        """Return what no client may read: addresses, ports and names of engines."""
        ports = [engine.port for engine in (*self.engines.values(), *self.dead)]
        words = ["127\\.0\\.0\\.1", "localhost", "https?://", *map(str, ports), *self._settings]
        return re.compile("|".join(rf"(?<![\w-]){word}(?![\w-])" for word in words))

    async def until(self, holds: Callable[[], object], limit_s: float = PATIENCE_S) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(limit_s):
            while not holds():
                await asyncio.sleep(0.001)

    def is_quiet(self) -> bool:
        """Whether nothing is in flight anywhere and no engine holds KV."""
        shell = self.server.shell
        engines = [engine.backend for engine in self.engines.values()]
        return (
            not shell.live
            and not shell.dispatcher.live_requests
            and all(not node.outstanding for node in self.ledger.values())
            and all(not backend.pace.flights and not backend._open for backend in engines)
            and all(backend.pace.state().kv_used_tokens == 0 for backend in engines)
            and all(not len(backend.leases) for backend in engines)
        )

    async def check_quiet(self) -> None:
        """Assert that all work, bookings, KV and connections are gone."""
        await self.until(self.is_quiet)
        await self.session.close()
        await self.until(lambda: not self.server.connections)
        if self.server.shell.dispatcher.live_requests == 0:
            final = sum(n for state, n in self.counts.items() if State[state].is_final)
            assert final == self.server.shell.dispatcher.arrived


@pytest.fixture
async def cluster(fast_profile: str) -> AsyncIterator[Cluster]:
    """A cluster that the test starts itself, and that is closed when it ends."""
    made = Cluster(fast_profile)
    yield made
    await made.close()


@pytest.fixture
def wish() -> type[Wish]:
    return Wish
