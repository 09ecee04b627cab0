"""Puts the router together, and runs it.

`serve` starts one on the running event loop and returns; `run` is the whole life of a process.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spillway.clock import Clock, MonotonicClock
from spillway.core.decide import Policy
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.errors import ConfigError, InvariantViolation, RequestError
from spillway.core.events import TimerFired
from spillway.core.types import NodeSpec, Slo
from spillway.router.admin import Admin
from spillway.router.admin_port import AdminPort
from spillway.router.credentials import CHALLENGE, ApiKeys
from spillway.router.decision_log import DecisionLog
from spillway.router.discovery import Discovery
from spillway.router.fleet import Fleet
from spillway.router.gate import Gate, Queueing
from spillway.router.health import HealthWatch
from spillway.router.heartbeat import BEAT_S
from spillway.router.http_server import ClientConnection, Front, Request
from spillway.router.intake import Intake
from spillway.router.otlp import SpanExport
from spillway.router.pool import NodePool
from spillway.router.reload import Reloader
from spillway.router.settings import Classes, RouterSettings
from spillway.router.shell import Shell
from spillway.router.sweep import Sweep
from spillway.router.tls import server_context
from spillway.router.tracing import Tracer
from spillway.wire.config import DEFAULT_CLASS, ClassConfig, ClusterConfig, Node
from spillway.wire.openai import CHAT_PATH, COMPLETIONS_PATH, MODELS_PATH
from spillway.wire.tracingconfig import TracingConfig

# path: is it a chat
INFERENCE_PATHS = {COMPLETIONS_PATH.encode(): False, CHAT_PATH.encode(): True}
# What the port for clients shows when operators have one of their own.
PUBLIC_PAGES = ("/health", MODELS_PATH)
HEALTH_PATH = b"/health"
ALLOW_GET, ALLOW_POST = b"allow: GET\r\n", b"allow: POST\r\n"
DEFAULT_CLASSES = Classes({DEFAULT_CLASS: Slo(1.0, 0.06)})
LISTEN_BACKLOG = 1024
HANDSHAKE_S = 10.0  # a client that takes longer to begin TLS is dropped
DRAIN_POLL_S = 0.02
# Streams hold few containers and no cycles, so the collector has little to find and may come late.
GC_THRESHOLDS = (50_000, 20, 50)
EXIT_VIOLATION = 70


class Server:
    """A running router. It is the `Front` of its client connections.

    share_port: other processes of this machine listen there as well (`workers.py`).
    port: where it listens.   broken: resolves if the dispatcher found its state contradictory.
    """

    def __init__(self, shell: Shell, nodes: Sequence[Node], *, share_port: bool = False) -> None:
        self._share_port = share_port
        specs = [node.spec for node in nodes]
        report_urls = {node.spec.node_id: node.report_url for node in nodes if node.report_url}
        self.shell = shell
        self.settings = shell.settings
        self.connections: set[ClientConnection] = set()
        self.now_s = shell.clock.now_s()
        self.port = 0
        self.health = HealthWatch(shell, specs)
        self.intake = Intake(shell, specs, report_urls)
        self.health.on_back = self.intake.reopen
        self.fleet = Fleet(shell, self.health, self.intake, nodes)
        self._admin = Admin(shell, self.health, lambda: len(self.connections))
        has_own_port = self.settings.admin_port >= 0
        self._pages = PUBLIC_PAGES if has_own_port else self._admin.paths
        self.admin_port = AdminPort(shell, self._admin, self.fleet) if has_own_port else None
        self._tls = server_context(self.settings)
        keys_path = self.settings.api_keys_file
        self.keys = ApiKeys(keys_path, self.settings.engine_api_key) if keys_path else None
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[InvariantViolation] = self._loop.create_future()
        shell.on_violation = self._break
        shell.on_timer = self._wake_dispatcher
        self._draining = False
        self._listeners: list[asyncio.Server] = []
        self._reloader: Reloader | None = None
        self._discovering: asyncio.Task[None] | None = None
        self._sweep: Sweep | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._log_writers: list[asyncio.Task[None]] = []
        self._spans: SpanExport | None = None

    async def listen(self) -> None:
        """Begin to serve. Raises ConfigError if the port cannot be had."""
        settings = self.settings
        self.port = await self._listen(
            self, settings.host, settings.port, "--port", share_port=self._share_port
        )
        if self.admin_port is not None:
            self.admin_port.port = await self._listen(
                self.admin_port, settings.admin_host, settings.admin_port, "router.admin_port"
            )
        for file in (self.shell.decisions.file, self.shell.log.file):
            writing = file.write_forever(self.shell.clock)
            self._log_writers.append(self._loop.create_task(writing))
        fronts = (self,) if self.admin_port is None else (self, self.admin_port)
        self._sweep = Sweep(self.shell, fronts, self.intake, self.fleet)
        self.shell.heartbeat.beat()
        self._every("heartbeat", BEAT_S, self.shell.heartbeat.beat)
        self._every("sweep", settings.sweep_s, self._sweep.look)
        self._every("health", settings.health_interval_s, self.health.check)
        self.health.check()
        self.intake.open()

    async def _listen(
        self, front: Front, host: str, port: int, key: str, *, share_port: bool = False
    ) -> int:
        """Open a port and return its number. Raises ConfigError."""
        # The admin port of a worker is asked by its supervisor alone, on loopback.
        tls = None if self._share_port and not share_port else self._tls
        try:
            listener = await self._loop.create_server(
                lambda: ClientConnection(front),
                host,
                port,
                backlog=LISTEN_BACKLOG,
                reuse_port=share_port or None,
                ssl=tls,
                ssl_handshake_timeout=HANDSHAKE_S if tls else None,
            )
        except OSError as error:
            for opened in self._listeners:
                opened.close()
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; "
                f"choose another {key}, or 0 for a free one"
            ) from None
        self._listeners.append(listener)
        address: tuple[str, int] = listener.sockets[0].getsockname()
        return address[1]

    async def close(self) -> None:
        """Take no more requests, let those in progress finish for `drain_s`, then end."""
        self._draining = True
        for listener in self._listeners:
            listener.close()
        clock = self.shell.clock
        until_s = clock.now_s() + self.settings.drain_s
        while self.shell.live and clock.now_s() < until_s:
            await asyncio.sleep(DRAIN_POLL_S)
        for timer in self._timers.values():
            timer.cancel()
        if self._sweep is not None:
            self._sweep.close()
        if self._discovering is not None:
            self._discovering.cancel()
        if self._reloader is not None:
            self._reloader.discovery.close()
        self.health.close()
        self.intake.close()
        self.shell.stop()
        await asyncio.sleep(0)
        others = self.admin_port.connections if self.admin_port is not None else set()
        for conn in [*self.connections, *others]:
            conn.transport.abort()
        await asyncio.sleep(0)  # lost connections end their requests, and those their legs
        for pool in self.shell.pools.values():
            pool.close()
        for writer in self._log_writers:
            writer.cancel()
        if self._spans is not None:
            await self._spans.finish()
        await self.shell.decisions.file.finish()
        await self.shell.log.file.finish()

    def trace(self, config: TracingConfig) -> None:
        """Send spans of the requests from here on. Raises ConfigError without OpenTelemetry."""
        shell = self.shell
        tracer = Tracer(config, shell.clock)
        policy = shell.dispatcher.policy.name
        self._spans = SpanExport(tracer, config, (shell.router_id, policy), shell.clock, shell.log)
        self._log_writers.append(self._loop.create_task(self._spans.run()))
        shell.tracer = tracer

    def follow(self, reloader: Reloader) -> None:
        """Keep to a configuration from here on: `reload` reads it again, as does its change."""
        self._reloader = reloader
        if self.admin_port is not None:
            self.admin_port.reloader = reloader
        self._every("config", self.settings.config_watch_s, reloader.watch)
        discovery = self._admin.discovery = reloader.discovery
        if discovery.is_wanted:
            self._every("discovery", discovery.interval_s, self._discover)
        if discovery.pods is not None:
            discovery.pods.on_change = reloader.take_up
            discovery.pods.on_fault = self._note_discovery
            reloader.take_up()

    def _note_discovery(self, fault: str) -> None:
        self.shell.log.note("error", "discovery_failed", fault=fault)

    def _discover(self) -> None:
        assert self._reloader is not None
        if self._discovering is None or self._discovering.done():
            self._discovering = self._loop.create_task(self._reloader.discover())

    def reload(self) -> None:
        """Read the configuration again, if it came from a file."""
        if self._reloader is not None:
            self._reloader.reload_quietly()

    # --- Front --------------------------------------------------------------------------------

    def on_request(self, conn: ClientConnection, request: Request) -> None:
        path, _, query = request.target.partition(b"?")
        is_chat = INFERENCE_PATHS.get(path)
        if self._draining:
            conn.refuse(request, RequestError("the router is shutting down", status=503))
        elif self.keys is not None and path != HEALTH_PATH and not self._is_known(conn, request):
            return
        elif is_chat is None:
            self._show_page(conn, request, path.decode("latin-1"), query.decode("latin-1"))
        elif request.method == b"POST":
            self.shell.submit(conn, request, is_chat=is_chat)
        else:
            conn.refuse(request, RequestError("this path takes POST", status=405), ALLOW_POST)

    def _is_known(self, conn: ClientConnection, request: Request) -> bool:
        """Return whether the request bears a key; if not, it has been refused."""
        assert self.keys is not None
        try:
            request.client = self.keys.admit(request)
        except RequestError as error:
            conn.refuse(request, error, CHALLENGE)
            return False
        return True

    def on_bad_request(self, status: int) -> None:
        self.shell.metrics.bad_requests[status] += 1

    # --- inside -------------------------------------------------------------------------------

    def _show_page(self, conn: ClientConnection, request: Request, path: str, query: str) -> None:
        if path not in self._pages:
            conn.refuse(request, RequestError("there is no such path", status=404))
        elif request.method != b"GET":
            conn.refuse(request, RequestError("this path takes GET", status=405), ALLOW_GET)
        else:
            try:
                page = self._admin.answer(path, query)
            except RequestError as error:
                conn.refuse(request, error)
            else:
                conn.respond(request, page.status, page.body, page.lines)

    def _every(self, name: str, interval_s: float, action: Callable[[], None]) -> None:
        def again() -> None:
            self._timers[name] = self._loop.call_later(interval_s, again)
            action()

        self._timers[name] = self._loop.call_later(interval_s, again)

    def _wake_dispatcher(self, at_s: float) -> None:
        """Tell the dispatcher that it is `at_s`, then; an earlier wake-up is given up."""
        pending = self._timers.get("dispatcher")
        if pending is not None:
            pending.cancel()
        wait_s = max(0.0, at_s - self.shell.clock.now_s())
        self._timers["dispatcher"] = self._loop.call_later(wait_s, self.shell.tell, TimerFired())

    def _break(self, violation: InvariantViolation) -> None:
        if not self.broken.done():
            self.broken.set_result(violation)


async def serve(
    nodes: Sequence[tuple[NodeSpec, str] | Node],
    policy: Policy,
    *,
    classes: Classes = DEFAULT_CLASSES,
    limits: DispatchLimits = DispatchLimits(),  # noqa: B008 - frozen
    settings: RouterSettings = RouterSettings(),  # noqa: B008 - frozen
    clock: Clock | None = None,
    share_port: bool = False,
) -> Server:
    """Start a router in front of `nodes` (spec, base URL, report URL) and return it, listening.

    Raises ConfigError for a bad URL, a node id used twice, no decode node, or a taken port.
    """
    clock = clock or MonotonicClock()
    known = [node if isinstance(node, Node) else Node(*node) for node in nodes]
    specs = [node.spec for node in known]
    log = DecisionLog(
        policy.name,
        settings.decisions_kept,
        settings.decision_log_path,
        settings.decision_log_lines_max,
    )
    log.file.check("decision_log_path")
    dispatcher = Dispatcher(policy, specs, limits, record_views=log.wants_views)
    pools = {
        spec.node_id: NodePool(spec.node_id, url, settings, clock=clock) for spec, url, _ in known
    }
    shell = Shell(dispatcher, pools, classes, settings, clock, log)
    shell.log.file.check("log_path")
    server = Server(shell, known, share_port=share_port)
    await server.listen()
    return server


async def serve_config(
    config: ClusterConfig, path: Path | None = None, own: Mapping[str, Any] | None = None
) -> Server:
    """Start the router that a configuration describes. Raises ConfigError.

    path: the file it came from, which can then be read again while the router runs.
    own: settings of one of several workers, which share the port; None for a router on its own.
    """
    discovery = Discovery(config)
    await discovery.start()
    try:
        server = await serve(
            discovery.all_nodes(config),
            config.build_routing(),
            classes=Classes(config.slos(), DEFAULT_CLASS),
            limits=config.limits.build(),
            settings=RouterSettings(**{**config.router.given(), **(own or {})}),
            share_port=own is not None,
        )
    except ConfigError:
        discovery.close()
        raise
    if server.settings.inflight_max:
        classes = {DEFAULT_CLASS: ClassConfig(), **config.classes}
        queues = {
            name: Queueing(one.priority, one.queue_max, one.queue_wait_s)
            for name, one in classes.items()
        }
        server.shell.gate = Gate(server.shell, server.settings.inflight_max, queues)
    if config.tracing is not None:
        server.trace(config.tracing)
    server.follow(Reloader(server.shell, server.fleet, server.keys, config, path, discovery))
    return server


def run(
    config: ClusterConfig,
    on_ready: Callable[[Server], None] = lambda server: None,
    path: Path | None = None,
    own: Mapping[str, Any] | None = None,
) -> int:
    """Run a router until SIGINT or SIGTERM; return the exit code of the process.

    on_ready: called once it listens. path, own: as for `serve_config`. Raises ConfigError.
    """

    async def live() -> int:
        server = await serve_config(config, path, own)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, server.reload)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        on_ready(server)
        server.broken.add_done_callback(lambda broken: stop.set())
        await stop.wait()
        await server.close()
        return EXIT_VIOLATION if server.broken.done() else 0

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(live())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop's loop, or asyncio's where there is no uvloop: a quarter more CPU per chunk."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
