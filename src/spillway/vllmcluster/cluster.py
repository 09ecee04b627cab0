"""Starts, warms and ends a cluster of real vLLM nodes; knows their command line and HTTP alone.

One parent process (`parent.py`, in vLLM's environment) forks the nodes. Every wait is bounded, and
every way out of the block ends every process: the parent ends its nodes when our pipe to it closes,
and the kernel ends them should the parent die.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from spillway.core.errors import NodeError
from spillway.core.types import Role
from spillway.vllmcluster.placing import busy_ticks, engine_pid, pin, renice_busiest
from spillway.vllmcluster.plan import HOST, MODEL_NAME, Ports, VllmPlan
from spillway.wire.openai import (
    COMPLETIONS_PATH,
    decode_body,
    parse_body,
    prefill_body,
    read_prefill_answer,
)

PARENT_READY_S_MAX = 180.0  # a cold disk takes a minute to import everything
NODE_READY_S_MAX = 180.0
# The first contact of a pair may take longer than the lease of its KV (30 s) where nodes share few
# cores, and vLLM does not answer a request whose KV went meanwhile; the next one is served.
WARM_S_MAX = 60.0
# vLLM gives a handshake five seconds, which engines that share few cores may miss at first.
WARM_TRIES = 4
END_S_MAX = 10.0
POLL_S = 0.2
IDLE_S = 0.4  # long enough to see which thread is busy in an idle engine
WARM_PROMPT = list(range(300, 340))


@dataclass(slots=True)
class VllmNode:
    """One running node. url: of its API; report_url: of its plug-in, "" without one."""

    name: str
    role: Role
    pid: int
    url: str
    report_url: str
    log_path: Path
    ended: asyncio.Event
    status: int | None = None

    @property
    def engine_pid(self) -> int | None:
        return engine_pid(self.pid)


class VllmCluster:
    """The running cluster. Use it as `async with VllmCluster(plan) as cluster`.

    nodes: by name, prefill first. Raises NodeError when something does not come up, with the last
    line that it wrote.
    """

    def __init__(self, plan: VllmPlan) -> None:
        self.plan = plan
        self.nodes: dict[str, VllmNode] = {}
        self.model = ""
        self._parent: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[str] | None = None
        self._started: dict[str, asyncio.Future[int]] = {}
        self._by_pid: dict[int, VllmNode] = {}
        self._starts = count(1)

    async def __aenter__(self) -> Self:
        try:
            await self._start_parent()
            await asyncio.gather(*(self.start(name) for name in self.plan.roles()))
            await self.warm()
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

    def of_role(self, role: Role) -> list[VllmNode]:
        """Return the nodes of a role."""
        return [node for node in self.nodes.values() if node.role is role]

    async def start(self, name: str, ports: Ports | None = None) -> VllmNode:
        """Start a node and return it once it serves. Raises NodeError."""
        plan = self.plan
        ports = ports or _free_ports()
        log = plan.folder / f"{name}.{next(self._starts)}.log"
        order = {
            "start": name,
            "arguments": plan.arguments(name, self.model, ports),
            "environment": plan.environment(ports),
            "core": plan.core(name),
            "log": str(log),
        }
        pid = await self._order(name, order)
        node = VllmNode(
            name=name,
            role=plan.roles()[name],
            pid=pid,
            url=f"http://{HOST}:{ports.http_port}",
            report_url=f"http://{HOST}:{ports.report_port}" if plan.has_plugin(name) else "",
            log_path=log,
            ended=asyncio.Event(),
        )
        self.nodes[name] = self._by_pid[pid] = node
        await self._until_healthy(node)
        await self._place(node)
        return node

    async def kill(self, name: str) -> None:
        """End a node at once, engine process included, and return when it is gone."""
        node = self.nodes[name]
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(node.pid, signal.SIGKILL)
        async with asyncio.timeout(END_S_MAX):
            await node.ended.wait()

    async def restart(self, name: str) -> VllmNode:
        """Start a node again that has ended, at the same ports, and warm its pairs."""
        old = self.nodes[name]
        http, reports = (int(url.rpartition(":")[2] or 0) for url in (old.url, old.report_url))
        node = await self.start(name, _free_ports()._replace(http_port=http, report_port=reports))
        await self.warm(name)
        return node

    async def warm(self, name: str | None = None) -> None:
        """Move the KV of one short prompt over every pair, or over those of one node.

        The first contact of a pair costs seconds: connections, memory registration. A pair whose
        handshake fails or hangs is tried again. Raises NodeError.
        """
        timeout = aiohttp.ClientTimeout(total=WARM_S_MAX)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for prefill in self.of_role(Role.PREFILL):
                for decode in self.of_role(Role.DECODE):
                    if name in (None, prefill.name, decode.name):
                        await _warm_pair(session, prefill, decode)

    # --- inside ---------------------------------------------------------------------------------

    async def _start_parent(self) -> None:
        plan = self.plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        plan.write_profile()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
        # vLLM is a thousand modules: without their compiled form a start takes a minute.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        source = str(Path(__file__).resolve().parents[2])
        paths = [source, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        log_path = plan.folder / "parent.log"
        with log_path.open("wb") as log:
            self._parent = await asyncio.create_subprocess_exec(
                *(str(plan.python), "-m", "spillway.vllmcluster.parent"),
                *(str(plan.folder), plan.shape),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self._ready = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(log_path))
        try:
            async with asyncio.timeout(PARENT_READY_S_MAX):
                self.model = await self._ready
        except TimeoutError:
            raise NodeError(f"vLLM was not imported within {PARENT_READY_S_MAX:g} s") from None

    async def _read(self, log_path: Path) -> None:
        """Take in what the parent says, until it ends."""
        assert self._parent is not None
        assert self._parent.stdout is not None
        assert self._ready is not None
        while line := await self._parent.stdout.readline():
            said: dict[str, Any] = json.loads(line)
            if "ready" in said:
                self._ready.set_result(said["ready"])
            elif "started" in said:
                self._started.pop(said["started"]).set_result(said["pid"])
            elif (node := self._by_pid.get(said["ended"])) is not None:
                node.status = said["status"]
                node.ended.set()
        gone = NodeError(f"the parent of the vLLM nodes ended: {_last_line(log_path)}")
        if not self._ready.done():
            self._ready.set_exception(gone)
        for started in self._started.values():
            started.set_exception(gone)

    async def _order(self, name: str, order: dict[str, Any]) -> int:
        assert self._parent is not None
        assert self._parent.stdin is not None
        started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._started[name] = started
        self._parent.stdin.write(json.dumps(order).encode() + b"\n")
        await self._parent.stdin.drain()
        return await started

    async def _until_healthy(self, node: VllmNode) -> None:
        loop = asyncio.get_running_loop()
        due_s = loop.time() + NODE_READY_S_MAX
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5.0)) as session:
            while loop.time() < due_s:
                if node.ended.is_set():
                    raise NodeError(f"{node.name} ended as it started: {_last_line(node.log_path)}")
                with suppress(aiohttp.ClientError, TimeoutError):  # asked again until due_s
                    async with session.get(f"{node.url}/health") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(POLL_S)
        raise NodeError(f"{node.name} did not serve in {NODE_READY_S_MAX:g} s; see {node.log_path}")

    async def _place(self, node: VllmNode) -> None:
        """Keep the engine on its core, step NIXL's thread back, let the API server go anywhere."""
        engine = node.engine_pid
        if engine is None:
            raise NodeError(f"{node.name} has no engine process; see {node.log_path}")
        pin(engine, {self.plan.core(node.name)})
        pin(node.pid, os.sched_getaffinity(0))
        before = busy_ticks(engine)
        await asyncio.sleep(IDLE_S)
        renice_busiest(engine, before)

    async def _end(self) -> None:
        parent = self._parent
        if parent is None:
            return
        assert parent.stdin is not None
        parent.stdin.close()
        try:
            async with asyncio.timeout(END_S_MAX):
                await parent.wait()
        except TimeoutError:
            parent.kill()  # and the kernel ends its children
            await parent.wait()
        if self._reader is not None:
            await self._reader
        self._parent = None


class _Refused(NodeError):
    """A node answered, but not with what was asked of it, or not in time."""


async def _warm_pair(session: aiohttp.ClientSession, prefill: VllmNode, decode: VllmNode) -> None:
    """Run one prompt by the prefill path, at the `WARM_TRIES`th try at the latest."""
    for _ in range(WARM_TRIES - 1):
        with suppress(_Refused):
            return await _two_step(session, prefill, decode)
    return await _two_step(session, prefill, decode)


async def _two_step(session: aiohttp.ClientSession, prefill: VllmNode, decode: VllmNode) -> None:
    """Run one prompt by the prefill path. Raises NodeError."""
    body = json.dumps({"model": MODEL_NAME, "prompt": WARM_PROMPT, "max_tokens": 1}).encode()
    first = prefill_body(parse_body(body, is_chat=False).fields)
    answer = await _post(session, prefill, first)
    kv_params, _ = read_prefill_answer(answer)
    await _post(session, decode, decode_body(body, kv_params))


async def _post(session: aiohttp.ClientSession, node: VllmNode, body: bytes) -> bytes:
    headers = {"content-type": "application/json"}
    try:
        async with session.post(node.url + COMPLETIONS_PATH, data=body, headers=headers) as answer:
            content = await answer.read()
            if answer.status != 200:
                raise _Refused(f"{node.name} answered {answer.status}: {content[:200]!r}")
            return content
    except TimeoutError:
        raise _Refused(
            f"{node.name} did not answer in {WARM_S_MAX:g} s; see {node.log_path}"
        ) from None
    except aiohttp.ClientError as error:
        raise NodeError(f"{node.name}: {error!r}; see {node.log_path}") from None


def _free_ports() -> Ports:
    """Return ports that are free now; held all at once, so that they differ."""
    held = [socket.socket() for _ in Ports._fields]
    try:
        for one in held:
            one.bind((HOST, 0))
        return Ports(*(one.getsockname()[1] for one in held))
    finally:
        for one in held:
            one.close()


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1]}; see {path}" if lines else f"see {path}"
