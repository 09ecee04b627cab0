"""Starts and stops one fake engine: as an object in a running loop, or as a whole process."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from spillway.clock import Clock, MonotonicClock
from spillway.core.errors import ConfigError
from spillway.fakeengine.backend import Backend
from spillway.fakeengine.server import make_app
from spillway.fakeengine.settings import EngineSettings

__all__ = ["EngineSettings", "RunningEngine", "run_engine", "start_engine"]

SHUTDOWN_S = 0.3  # for the last bytes of open answers
KEEPALIVE_S = 75.0


class RunningEngine:
    """An engine that serves.

    port: where it listens. backend: its insides, for tests and for curious readers.
    """

    def __init__(self, backend: Backend, runner: web.AppRunner) -> None:
        self.backend = backend
        self.port = backend.port
        self._runner = runner

    @property
    def url(self) -> str:
        return f"http://{self.backend.settings.host}:{self.port}"

    async def close(self) -> None:
        """Stop within a second: open answers end with an error, records are written."""
        self.backend.stop()
        await self._runner.cleanup()
        await self.backend.close()

    async def kill(self) -> None:
        """Die as a killed process would: every connection breaks at once."""
        for site in list(self._runner.sites):
            await site.stop()
        server = self._runner.server
        for connection in list(server.connections) if server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()
        await self.close()


async def start_engine(settings: EngineSettings, clock: Clock | None = None) -> RunningEngine:
    """Start an engine in the running loop and return it, listening.

    Raises ConfigError when a setting makes no sense or the port is taken.
    """
    try:
        listener = socket.create_server((settings.host, settings.port), backlog=1024)
    except OSError as error:
        raise ConfigError(
            f"engine: cannot listen on {settings.host}:{settings.port}: {error.strerror}; "
            "port 0 takes a free one"
        ) from error
    try:
        backend = Backend(settings, listener.getsockname()[1], clock or MonotonicClock())
    except ConfigError:
        listener.close()
        raise
    runner = web.AppRunner(
        make_app(backend),
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=KEEPALIVE_S,
        shutdown_timeout=SHUTDOWN_S,
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    return RunningEngine(backend, runner)


def run_engine(
    settings: EngineSettings, on_ready: Callable[[RunningEngine], None] | None = None
) -> None:
    """Run an engine until SIGTERM or SIGINT. `on_ready` is called once it listens.

    Raises ConfigError as `start_engine`.
    """

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stop.set)
        engine = await start_engine(settings)
        if on_ready is not None:
            on_ready(engine)
        await stop.wait()
        await engine.close()

    asyncio.run(serve())
