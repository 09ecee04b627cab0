"""A router in memory, between clients that send anything and engines that read strictly."""

from __future__ import annotations

import json
from asyncio import events
from collections.abc import Callable

from builders import make_spec
from fuzzing.memory import Fault, MemoryLoop, Transport
from spillway.core.decide import Policy
from spillway.core.types import NodeSpec, Role, Slo
from spillway.router.app import Server, serve
from spillway.router.http_server import ClientConnection
from spillway.router.settings import Classes, RouterSettings

KV_PARAMS = (
    b'{"do_remote_prefill":true,"remote_engine_id":"e","remote_request_id":"r",'
    b'"remote_block_ids":[[1,2]],"remote_host":"10.0.0.9","remote_port":5600,"tp_size":1}'
)
PREFILLED = (
    b'{"id":"x","choices":[{"text":"a"}],"usage":{"prompt_tokens":7},"kv_transfer_params":%b}'
    % KV_PARAMS
)
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
EVENT = b'data: {"choices":[{"text":"t"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def answer(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


STREAM = SSE_HEAD + chunk(EVENT) + chunk(EVENT) + chunk(DONE) + b"0\r\n\r\n"


class ClientEnd:
    """A client: what it got, and whether its connection was ended by the router."""

    def __init__(self, rig: Rig) -> None:
        self.got = bytearray()
        self.is_closed = self.is_aborted = self.left = False
        self.is_paused = False
        self.conn = ClientConnection(rig.server)
        self.transport = Transport(rig.loop, self.conn)
        self.transport.peer = self
        self.conn.connection_made(self.transport)

    def pause(self) -> None:
        """Read no more for a while, as the router's write buffer tells."""
        if not (self.is_paused or self.transport.is_closing()):
            self.is_paused = True
            self.conn.pause_writing()

    def resume(self) -> None:
        if self.is_paused and not self.transport.is_closing():
            self.is_paused = False
            self.conn.resume_writing()

    def received(self, data: bytes) -> None:
        self.got += data

    def eof(self) -> None:
        self.is_closed = True

    def closed(self, *, aborted: bool) -> None:
        self.is_closed = True
        self.is_aborted = self.is_aborted or aborted


class EngineEnd:
    """An engine's end of one connection. It reads strictly, as the last in line has to."""

    def __init__(self, engine: Engine, transport: Transport) -> None:
        self.engine = engine
        self._transport = transport
        self._buffer = b""

    def received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.split(b"\r\n")
        method, target, version = lines[0].split(b" ")
        headers: dict[bytes, bytes] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            name = name.lower()
            if not colon or not TOKEN.issuperset(name) or not name or not is_clean(value):
                raise Fault(f"an engine was sent the header line {line!r}")
            if name in ONCE and name in headers:
                raise Fault(f"an engine was sent {name!r} twice")
            headers[name] = value.strip()
        if version != b"HTTP/1.1" or not is_clean(target) or b"host" not in headers:
            raise Fault(f"an engine was sent the head {head!r}")
        if b"transfer-encoding" in headers:
            raise Fault("an engine was sent a second framing")
        length = int(headers.get(b"content-length", b"0"))
        if len(rest) < length:
            return
        if len(rest) > length:
            raise Fault(f"an engine was sent {len(rest) - length} bytes more than announced")
        self._buffer = b""
        self.engine.loop.call_soon(self._answer, method, target, headers, rest)

    def _answer(self, method: bytes, target: bytes, headers, body: bytes) -> None:
        self.engine.on_request(self, method, target, headers, body)

    def send(self, data: bytes) -> None:
        self._transport.deliver(data)

    def close(self) -> None:
        self._transport.deliver_eof()

    def reset(self) -> None:
        self._transport.lose(ConnectionResetError())

    def eof(self) -> None:
        pass

    def closed(self, *, aborted: bool) -> None:
        pass


TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
ONCE = (b"content-length", b"host", b"x-spillway-dispatch", b"x-request-id", b"x-slo-ttft-ms")


def is_clean(value: bytes) -> bool:
    """Whether a value holds nothing that ends a line."""
    return b"\r" not in value and b"\n" not in value and b"\0" not in value


class Engine:
    """An engine that answers well. on_post: called instead for every completion."""

    def __init__(self, loop: MemoryLoop, node_id: str, port: int) -> None:
        self.loop = loop
        self.port = port
        self.role = Role.PREFILL if node_id.startswith("p") else Role.DECODE
        self.spec: NodeSpec = make_spec(node_id, self.role)
        self.refuses = False
        self.posts = 0
        self.on_post: Callable[[EngineEnd, dict], None] | None = None
        self.on_page: Callable[[EngineEnd, bytes], bool] | None = None
        self.reports: EngineEnd | None = None
        loop.ports[port] = self

    def accept(self, transport: Transport) -> EngineEnd:
        return EngineEnd(self, transport)

    def on_request(self, end: EngineEnd, method: bytes, target: bytes, headers, body) -> None:
        if method == b"POST":
            self.posts += 1
            try:
                fields = json.loads(body)
            except (ValueError, RecursionError):  # inside a value: for the engine to refuse
                end.send(answer(400, b'{"error":{"message":"no JSON"}}'))
                return
            if self.on_post is not None:
                self.on_post(end, fields)
            else:
                end.send(self.good_answer(fields))
        elif self.on_page is not None and self.on_page(end, target):
            pass
        elif target == b"/health":
            end.send(answer(200, b""))
        elif target == b"/v1/models":
            end.send(answer(200, b'{"object":"list","data":[{"id":"m","object":"model"}]}'))
        else:
            end.send(answer(404, b"{}"))

    def good_answer(self, fields: dict) -> bytes:
        if self.role is Role.PREFILL:
            return answer(200, PREFILLED)
        if fields.get("stream"):
            return STREAM
        return answer(200, b'{"choices":[{"text":"t"}],"usage":{"completion_tokens":1}}')


class Rig:
    """A router in front of engines, all in memory. Use it as `with rig:`; one at a time.

    settings: of the router, where they differ from what keeps it from asking too often.
    """

    def __init__(self, policy: Policy, nodes: str = "p0 d0 d1", **settings) -> None:
        self.loop = MemoryLoop()
        names = enumerate(nodes.split(), 1001)
        self.engines = {name: Engine(self.loop, name, port) for port, name in names}
        self._policy = policy
        self._settings = QUIET | settings
        self.server: Server

    def __enter__(self) -> Rig:
        events._set_running_loop(self.loop)
        self.server = self.loop.complete(
            serve(
                [(one.spec, f"http://n:{one.port}") for one in self.engines.values()],
                self._policy,
                classes=Classes({"default": Slo(1.0, 0.06), "batch": Slo(30.0, 0.5)}),
                settings=RouterSettings(**self._settings),
                clock=VirtualClock(self.loop),
            )
        )
        return self

    def __exit__(self, *_) -> None:
        events._set_running_loop(None)

    def check_empty(self) -> None:
        """Raise Fault unless every connection and request of clients has ended, in all books."""
        shell = self.server.shell
        if self.server.connections or shell.live or shell.dispatcher.live_requests:
            raise Fault(f"left behind: {len(self.server.connections)} connections, {shell.live}")
        for node in shell.dispatcher.ledger.nodes.values():
            if node.outstanding:
                raise Fault(f"{node.outstanding} legs are booked on {node.spec.node_id}")
        if shell.dispatcher.policy_failures:
            raise Fault("the policy failed")

    def settle(self) -> None:
        """Let every limit of the router pass."""
        self.loop.run()
        self.loop.advance(SETTLE_S)


QUIET = {
    "port": 0,
    "health_interval_s": 1e6,
    "health_timeout_s": 4.0,
    "sweep_s": 5.0,
    "request_complete_s": 4.0,
    "client_idle_s": 4.0,
    "client_stall_s": 4.0,
    "prefill_s": 4.0,
    "first_byte_s": 4.0,
    "stream_silence_s": 4.0,
    "upstream_idle_s": 100.0,
    "breaker_failures": 10**9,
    "report_silence_s": 1e6,
    "report_absent_retry_s": 1e6,
    "decisions_kept": 16,
}
SETTLE_S = 16.0  # three sweeps: to notice a silence, to notice the next leg's, and to linger


class VirtualClock:
    """The loop's own time."""

    def __init__(self, loop: MemoryLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        return self._loop.now_s

    async def sleep_until(self, due_s: float) -> None:
        raise NotImplementedError  # nothing that sleeps is switched on
