"""Serves `GET /spillway/reports` from inside the engine's process, on a thread of its own.

The engine hands over the latest report and goes on; this thread numbers, encodes and sends it. It
speaks just enough HTTP for a router: one request head, one endless chunked answer. Nothing here
waits for a reader: sockets do not block, and a reader that falls behind loses the oldest lines,
which is counted and shows as a gap in `seq`.

Questions for leave to deflect (`wire.reserve`) are answered here as well, on connections that are
kept, from the last report and from what was granted since: the scheduler is not disturbed, and an
engine in the middle of a long step answers at once.

Held KV that nobody will fetch is named here too (`wire.release`). The names wait in a bounded queue
for the engine's thread, which looks before every step; an engine that holds KV is never idle.
"""

from __future__ import annotations

import selectors
import socket
import threading
from collections import Counter, deque
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import msgspec

from spillway.clock import Clock
from spillway.core.errors import RequestError
from spillway.core.reservation import Ask, Grants
from spillway.wire.kvparams import HeldKv
from spillway.wire.release import RELEASE_PATH, STATUS_FULL, STATUS_TAKEN, read_release
from spillway.wire.report import REPORTS_PATH, STEPS_MAX, NodeReport, StepTaken, encode
from spillway.wire.reserve import RESERVE_PATH, encode_answer, load_of, read_ask, with_grants

LINES_MAX = 16  # per reader; at 20 ms each, a third of a second
READERS_MAX = 256  # each router has one for reports and some for its questions
HEAD_BYTES_MAX = 16 * 1024
HEAD_WAIT_S = 5.0
READ_BYTES = 65536
ORPHANS_MAX = 1024  # names that wait for the engine's next step
PATHS = {REPORTS_PATH: "GET", RESERVE_PATH: "POST", RELEASE_PATH: "POST"}

_OK = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Listener:
    """The report port of one engine.

    dropped: what was dropped, by kind; `snapshot` reads it from another thread.
    orphans: held KV that is to be freed. This thread appends, the engine's takes from the left.
    `publish` and `note_*` belong to the engine's thread, everything else to this one's. What
    was granted belongs to both, under a lock that nobody holds for longer than some µs.
    """

    def __init__(
        self, host: str, port: int, *, clock: Clock, interval_s: float, heartbeat_s: float
    ) -> None:
        """Bind and start. Raises OSError when the address cannot be had."""
        self.dropped: Counter[str] = Counter()
        self.orphans: deque[HeldKv] = deque()
        self._clock = clock
        self._interval_s = interval_s
        self._heartbeat_s = heartbeat_s
        self._latest: NodeReport | None = None
        self._fresh = False
        self._grants = Grants()
        self._arrived: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        self._steps: deque[StepTaken] = deque(maxlen=STEPS_MAX)
        self._sent_at_s = -heartbeat_s
        self._readers: list[_Reader] = []
        self._closing = False
        self._server = socket.create_server((host, port), backlog=READERS_MAX)
        self._server.setblocking(False)
        self.address: tuple[str, int] = self._server.getsockname()[:2]
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="spillway-reports", daemon=True)
        self._thread.start()

    # --- the engine's thread ------------------------------------------------------------------

    def publish(self, report: NodeReport) -> None:
        """Replace the report to send next. Its seq is set per reader. A few µs, never blocks."""
        with self._lock:
            for router_id, dispatch_id in self._arrived:
                self._grants.arrived(router_id, dispatch_id)
            self._arrived.clear()
            self._latest = report
        if not self._fresh:
            self._fresh = True
            self._wake()

    def note_arrived(self, router_id: str, dispatch_id: int) -> None:
        """Take a request for come that the next report will include."""
        self._arrived.append((router_id, dispatch_id))

    def note_step(self, step: StepTaken) -> None:
        """Add a step to the next report; the oldest goes beyond STEPS_MAX."""
        self._steps.append(step)

    def close(self) -> None:
        """End every stream and the thread. Idempotent."""
        self._closing = True
        self._wake()
        self._thread.join(timeout=2.0)

    def _wake(self) -> None:
        # Full means that the thread has not even begun on earlier wake-ups; closed, that it ended.
        with suppress(BlockingIOError, OSError):
            self._wake_out.send(b"x")

    # --- this thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._closing:
                for key, events in self._selector.select(self._wait_s()):
                    if key.fileobj is self._server:
                        self._accept()
                    elif key.fileobj is self._wake_in:
                        with suppress(BlockingIOError):
                            self._wake_in.recv(READ_BYTES)
                    else:
                        self._serve(key.data, events)
                self._send_due()
        finally:
            for reader in list(self._readers):
                self._drop(reader)
            for end in (self._server, self._wake_in, self._wake_out):
                end.close()
            self._selector.close()

    def _wait_s(self) -> float:
        if not self._readers:
            return HEAD_WAIT_S
        pause_s = self._interval_s if self._fresh else self._heartbeat_s
        return max(0.0, self._sent_at_s + pause_s - self._clock.now_s())

    def _accept(self) -> None:
        try:
            connection, _ = self._server.accept()
        except OSError:  # it left again, or descriptors ran out: the backlog is asked again
            self.dropped["accept"] += 1
            return
        connection.setblocking(False)
        reader = _Reader(connection, self._clock.now_s())
        if len(self._readers) >= READERS_MAX:
            self.dropped["reader"] += 1
            connection.close()
            return
        self._readers.append(reader)
        self._selector.register(connection, selectors.EVENT_READ, reader)

    def _serve(self, reader: _Reader, events: int) -> None:
        if events & selectors.EVENT_READ and not reader.receive():
            self._drop(reader)
            return
        if reader.begins():
            self.dropped["refused"] += reader.refused
            if reader.ask is not None:
                self._judge(reader, reader.ask)
            elif reader.orphan is not None:
                self._take(reader, reader.orphan)
            elif reader.streaming:
                self._fresh = True  # the others are to hear that there is one more
                latest = self._picture()
                if latest is not None:
                    reader.put(latest, (), self.dropped)
        self._flush(reader)

    def _judge(self, reader: _Reader, ask: Ask) -> None:
        """Answer a question for leave to deflect."""
        with self._lock:
            latest = self._latest
            if latest is None:
                reader.refuse("503 Service Unavailable", "nothing is known of this engine yet")
                return
            verdict = self._grants.decide(ask, load_of(latest), self._clock.now_s())
            told = with_grants(latest, self._grants, self._routers())
        self._fresh = True
        reader.answer(*encode_answer(verdict, told), now_s=self._clock.now_s())

    def _take(self, reader: _Reader, orphan: HeldKv) -> None:
        """Keep for the engine's thread what is to be freed."""
        status = STATUS_TAKEN
        if len(self.orphans) < ORPHANS_MAX:
            self.orphans.append(orphan)
        else:
            status = STATUS_FULL
            self.dropped["orphan"] += 1
        reader.answer(status, b"{}", now_s=self._clock.now_s())

    def _picture(self) -> NodeReport | None:
        """Return the last report with what has been granted since."""
        with self._lock:
            self._grants.expire(self._clock.now_s())
            latest = self._latest
            return latest and with_grants(latest, self._grants, self._routers())

    def _routers(self) -> int:
        return len({reader.router_id for reader in self._readers if reader.streaming})

    def _send_due(self) -> None:
        now_s = self._clock.now_s()
        for reader in [one for one in self._readers if not one.began]:
            if now_s > reader.since_s + HEAD_WAIT_S:
                self.dropped["slow_request"] += not reader.is_kept
                self._drop(reader)
        pause_s = self._interval_s if self._fresh else self._heartbeat_s
        if self._latest is None or now_s < self._sent_at_s + pause_s:
            return
        self._fresh = False  # before it is read: a report handed over from now on counts as new
        latest = self._picture()
        assert latest is not None
        self._sent_at_s = now_s
        if any(reader.streaming for reader in self._readers):
            steps = tuple(self._steps.popleft() for _ in range(len(self._steps)))
            for reader in list(self._readers):
                if reader.streaming:
                    reader.put(latest, steps, self.dropped)
                    self._flush(reader)

    def _flush(self, reader: _Reader) -> None:
        if not reader.flush():
            self._drop(reader)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if reader.has_rest else 0)
        if self._selector.get_key(reader.connection).events != wanted:
            self._selector.modify(reader.connection, wanted, reader)

    def _drop(self, reader: _Reader) -> None:
        self._readers.remove(reader)
        self._selector.unregister(reader.connection)
        reader.connection.close()


class _Reader:
    """One connection: a request head, then lines. refused: 1 when the request was not for us.

    router_id: who reads. ask: the question, if it is one. orphan: KV to be freed, if it is that.
    is_kept: it has asked before.
    """

    def __init__(self, connection: socket.socket, since_s: float) -> None:
        self.connection = connection
        self.since_s = since_s
        self.began = False
        self.streaming = False
        self.refused = 0
        self.router_id = ""
        self.ask: Ask | None = None
        self.orphan: HeldKv | None = None
        self.is_kept = False
        self._head = b""
        self._seq = 0
        self._lines: deque[bytes] = deque()
        self._rest = b""

    @property
    def has_rest(self) -> bool:
        """Say whether the socket would not take everything."""
        return bool(self._rest)

    def receive(self) -> bool:
        """Take what the reader sent; False when it has left or sends too much."""
        try:
            data = self.connection.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not self.began:
            self._head += data
        return bool(data) and len(self._head) <= HEAD_BYTES_MAX

    def begins(self) -> bool:
        """Answer the request once its head is complete; True the one time that happens."""
        if self.began or b"\r\n\r\n" not in self._head:
            return False
        self.began = True
        words = self._head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
        target = urlsplit(words[1]) if len(words) == 3 else urlsplit("")
        method = PATHS.get(target.path)
        if method is None:
            self.refuse("404 Not Found", f"only {', '.join(PATHS)} are served here")
        elif words[0] != method:
            self.refuse("405 Method Not Allowed", f"{target.path} takes {method}")
        elif method == "POST":
            try:
                if target.path == RELEASE_PATH:
                    self.orphan = read_release(target.query)
                else:
                    self.ask = read_ask(target.query)
            except RequestError as error:
                self.refuse("400 Bad Request", str(error))
        elif not (routers := parse_qs(target.query).get("router")):
            self.refuse("400 Bad Request", "say who asks: ?router=ID")
        else:
            self.router_id = routers[-1]
            self.streaming = True
            self._rest = _OK
        return True

    def answer(self, status: int, body: bytes, *, now_s: float) -> None:
        """Answer a question, and wait for the next one."""
        head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: "
        self._rest += head.encode() + b"%d\r\n\r\n%b" % (len(body), body)
        self._head = self._head.partition(b"\r\n\r\n")[2]
        self.began, self.ask, self.orphan, self.is_kept = False, None, None, True
        self.since_s = now_s

    def put(self, report: NodeReport, steps: tuple[StepTaken, ...], dropped: Counter[str]) -> None:
        """Queue a report for this reader, dropping its oldest line when it is too far behind."""
        self._seq += 1
        line = encode(msgspec.structs.replace(report, seq=self._seq, recent_steps=steps))
        if len(self._lines) == LINES_MAX:
            self._lines.popleft()
            dropped["report_line"] += 1
        self._lines.append(b"%x\r\n%b\r\n" % (len(line), line))

    def flush(self) -> bool:
        """Send as much as the socket takes; False when the connection is over."""
        try:
            while self._rest or self._lines:
                if not self._rest:
                    self._rest = b"".join(self._lines)
                    self._lines.clear()
                self._rest = self._rest[self.connection.send(self._rest) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return self.streaming or not self.began

    def refuse(self, status: str, text: str) -> None:
        """Answer that this cannot be had, and end the connection."""
        self.refused = 1
        body = f"{text}\n".encode()
        self._rest = (
            f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        ).encode() + body
