"""Several worker processes behind one port, and the process that looks after them.

A worker is a whole router. All listen on the same port (SO_REUSEPORT) and the kernel spreads new
connections over them; the supervisor takes no request. Workers share nothing: over nodes with the
plug-in they are replicas as on several machines (docs/decisions/011). A worker that dies is started
again, a bounded number of times; signals are passed on; one port answers operators for all.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from spillway.core.errors import ConfigError
from spillway.router.app import EXIT_VIOLATION, HANDSHAKE_S, LISTEN_BACKLOG, Server, run
from spillway.router.http_server import ClientConnection
from spillway.router.settings import RouterSettings
from spillway.router.tls import server_context
from spillway.router.workerport import WorkerPort
from spillway.wire.config import ClusterConfig

RESTARTS_MAX = 5  # of all workers together, within
RESTARTS_WINDOW_S = 60.0
RESTART_S_FIRST = 0.2  # doubled with each restart in the window
READY_S_MAX = 60.0
END_S_EXTRA = 5.0  # beyond drain_s, from SIGTERM to SIGKILL
SWEEP_S = 1.0
ORDER_BYTES_MAX = 16 * 1024 * 1024
EXIT_CONFIG = 2
EXIT_GIVEN_UP = 71


class WorkerOrder(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told, on the first line of its standard input.

    config: as the operator gave it. path: the file it came from, "" for none. own: settings of the
    worker that differ from it.
    """

    config: ClusterConfig
    path: str
    own: dict[str, Any]


class WorkerReady(msgspec.Struct, frozen=True):
    """What a worker says on its standard output once it listens."""

    admin_port: int


def read_order() -> WorkerOrder:
    """Return the order on the first line of standard input. Raises ConfigError if there is none."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = os.read(0, 65536)
        if not data or len(line) > ORDER_BYTES_MAX:
            raise ConfigError("--as-worker is for the supervisor alone; use --workers")
        line += data
    return msgspec.json.decode(line, type=WorkerOrder)


def run_worker(order: WorkerOrder) -> int:
    """Be one worker until told to stop; return the exit code. Raises ConfigError."""

    def say(server: Server) -> None:
        assert server.admin_port is not None
        ready = WorkerReady(server.admin_port.port)
        print(msgspec.json.encode(ready).decode(), flush=True)

    return run(order.config, say, Path(order.path) if order.path else None, order.own)


class _Worker:
    """One worker process. admin_port: 0 until it is ready."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.admin_port = 0
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, order: WorkerOrder) -> None:
        """Start it and return when it listens, or has ended."""
        self.process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "spillway", "serve", "--as-worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which passes it on
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        line = b""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_S_MAX):
                line = await process.stdout.readline()
        if line:
            self.admin_port = msgspec.json.decode(line, type=WorkerReady).admin_port
        else:
            self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Pass a signal on, if there is still anybody."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)


class Supervisor:
    """Looks after the workers. It is the `Crew` of its admin port.

    port, admin_port: where clients and operators are served.
    """

    def __init__(self, config: ClusterConfig, path: Path | None, workers_wanted: int) -> None:
        self.settings = RouterSettings(**config.router.given())
        self.workers_wanted = workers_wanted
        self.restarts = 0
        self.token = secrets.token_hex(16)
        self.port = self.admin_port = 0
        self._config = config
        self._path = path
        self._workers = [_Worker(number) for number in range(workers_wanted)]
        self._restarted_s: deque[float] = deque()
        self._stopping = asyncio.Event()
        self._exit_code = 0

    @property
    def ports(self) -> Mapping[int, int]:
        return {one.number: one.admin_port for one in self._workers if one.admin_port}

    def pids(self) -> list[int]:
        """Return the process id of each worker that was started."""
        return [one.process.pid for one in self._workers if one.process is not None]

    async def live(self, on_ready: Callable[[Supervisor], None]) -> int:
        """Run until told to stop, or until the workers cannot be kept; return the exit code.

        Raises ConfigError if a port cannot be had or the workers refuse the configuration.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        settings = self.settings
        with _reserved(settings.host, settings.port) as reserved:
            self.port = reserved.getsockname()[1]
            front = WorkerPort(self, settings)
            listener = await self._listen(front)
            watching = [asyncio.create_task(self._keep(one)) for one in self._workers]
            try:
                await self._until_ready()
                if not self._stopping.is_set():
                    on_ready(self)
                while not self._stopping.is_set():
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._stopping.wait(), SWEEP_S)
                    front.sweep()
            finally:
                self._stopping.set()
                listener.close()
                await self._end(watching)
                front.close()
        return self._exit_code

    async def _listen(self, front: WorkerPort) -> asyncio.Server:
        settings = self.settings
        host, port = settings.admin_host, max(0, settings.admin_port)
        tls = server_context(settings)
        try:
            listener = await asyncio.get_running_loop().create_server(
                lambda: ClientConnection(front),
                host,
                port,
                backlog=LISTEN_BACKLOG,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_S if tls else None,
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another"
                " router.admin_port, or 0 for a free one"
            ) from None
        self.admin_port = listener.sockets[0].getsockname()[1]
        return listener

    def _order(self) -> WorkerOrder:
        own = {"port": self.port, "admin_host": "127.0.0.1", "admin_port": 0}
        own |= {"admin_token": self.token, "admin_token_file": ""}
        path = "" if self._path is None else str(self._path)
        return WorkerOrder(config=self._config, path=path, own=own)

    async def _keep(self, worker: _Worker) -> None:
        """Run one worker, again and again while that makes sense."""
        while not self._stopping.is_set():
            await worker.start(self._order())
            assert worker.process is not None
            if self._stopping.is_set():
                worker.send(signal.SIGTERM)
            code = await worker.process.wait()
            was_ready, worker.admin_port = bool(worker.admin_port), 0
            if self._stopping.is_set():
                return
            wait_s = self._restart_in()
            if wait_s is None or (code == EXIT_CONFIG and not was_ready):
                self._exit_code = EXIT_CONFIG if code == EXIT_CONFIG else EXIT_GIVEN_UP
                if code == EXIT_VIOLATION:
                    self._exit_code = code
                self._stopping.set()
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), wait_s)

    def _restart_in(self) -> float | None:
        """Return the seconds until a worker is started again, None if it was often enough."""
        now_s = asyncio.get_running_loop().time()
        while self._restarted_s and self._restarted_s[0] < now_s - RESTARTS_WINDOW_S:
            self._restarted_s.popleft()
        if len(self._restarted_s) >= RESTARTS_MAX:
            return None
        self._restarted_s.append(now_s)
        self.restarts += 1
        return float(RESTART_S_FIRST * 2.0 ** (len(self._restarted_s) - 1))

    async def _until_ready(self) -> None:
        while len(self.ports) < self.workers_wanted and not self._stopping.is_set():
            await asyncio.sleep(0.02)

    async def _end(self, watching: list[asyncio.Task[None]]) -> None:
        """Let the workers drain, and make sure that they are gone."""
        self._pass_on(signal.SIGTERM)
        limit_s = self.settings.drain_s + END_S_EXTRA
        _, left = await asyncio.wait(watching, timeout=limit_s)
        if left:
            self._pass_on(signal.SIGKILL)
            await asyncio.wait(left)

    def _pass_on(self, number: signal.Signals) -> None:
        for worker in self._workers:
            worker.send(number)


def run_workers(
    config: ClusterConfig,
    workers_wanted: int,
    on_ready: Callable[[Supervisor], None] = lambda supervisor: None,
    path: Path | None = None,
) -> int:
    """Run so many workers until SIGINT or SIGTERM; return the exit code. Raises ConfigError."""

    async def live() -> int:
        return await Supervisor(config, path, workers_wanted).live(on_ready)

    return asyncio.run(live())


def _reserved(host: str, port: int) -> socket.socket:
    """Return a socket that keeps the port for the workers and takes no connection itself.

    Raises ConfigError if anybody else listens there: a second program that shares the port would
    get a part of the requests.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = alone.getsockname()[1]
        shared = socket.socket(family)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port, or 0 for a"
            " free one"
        ) from None
    return shared
