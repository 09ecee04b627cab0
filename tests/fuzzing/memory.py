"""An event loop, connections and engines in memory: the whole router, without a socket or a wait.

Time is virtual and moves only when told to. What a callback raises is kept and raised again; the
number of callbacks is bounded, so that a hang is an error and not a wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Protocol

STEPS_MAX = 20_000  # callbacks that one input may cause


class Fault(AssertionError):
    """What must not happen did."""


class MemoryLoop(asyncio.AbstractEventLoop):
    """As much of an event loop as the router needs, on virtual time."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.ports: dict[int, Port] = {}
        self.raised: list[BaseException] = []
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = count()

    def run(self, steps_max: int = STEPS_MAX) -> None:
        """Call back until nothing is ready. Raises what a callback raised, or Fault for a hang."""
        for _ in range(steps_max):
            if not self._ready:
                break
            handle = self._ready.popleft()
            if not handle.cancelled():
                handle._run()
        else:
            raise Fault(f"{steps_max} callbacks and no end")
        if self.raised:
            raise self.raised[0]

    def advance(self, delta_s: float) -> None:
        """Move time on, calling back whatever falls due on the way, in order."""
        self.run()
        until_s = self.now_s + delta_s
        while self._timers and self._timers[0][0] <= until_s:
            at_s, _, handle = heappop(self._timers)
            if not handle.cancelled():
                self.now_s = max(self.now_s, at_s)
                self._ready.append(handle)
                self.run()
        self.now_s = until_s

    def complete(self, coroutine):
        """Return what a coroutine returns; it may not wait for time."""
        task = self.create_task(coroutine)
        self.run()
        return task.result()

    # --- asyncio.AbstractEventLoop ------------------------------------------------------------

    def call_soon(self, callback, *args, context=None):
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(self, delay, callback, *args, context=None):
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(self, when, callback, *args, context=None):
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._order), handle))
        return handle

    def _timer_handle_cancelled(self, handle) -> None:
        pass  # it is skipped when its time comes

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def create_task(self, coro, *, name=None, context=None):
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def create_future(self):
        return asyncio.Future(loop=self)

    def call_exception_handler(self, context) -> None:
        self.raised.append(context.get("exception") or Fault(context["message"]))

    def run_in_executor(self, executor, func, *args):
        done = self.create_future()
        done.set_result(func(*args))
        return done

    async def create_connection(self, protocol_factory, host=None, port=None, **options):
        engine = self.ports[port]
        if engine.refuses:
            raise ConnectionRefusedError
        protocol = protocol_factory()
        transport = Transport(self, protocol)
        transport.peer = engine.accept(transport)
        protocol.connection_made(transport)
        return transport, protocol

    async def create_server(self, protocol_factory, host=None, port=None, **options):
        return Listener()


class Port(Protocol):
    """What a connection can be made to. accept: returns the other end of one."""

    refuses: bool

    def accept(self, transport: Transport) -> object: ...


class Listener:
    """A port that nobody can reach; clients are handed to the router directly."""

    sockets = property(lambda self: [self])

    def getsockname(self):
        return ("127.0.0.1", 1)

    def close(self) -> None:
        pass


class Transport:
    """The router's end of a connection, as strict as uvloop's is about one that is gone."""

    def __init__(self, loop: MemoryLoop, protocol) -> None:
        self._loop = loop
        self._protocol = protocol
        self._closing = self._gone = self._paused = self._eof = False
        self._kept: deque[bytes] = deque()
        self.peer = None

    def deliver(self, data: bytes) -> None:
        """Let the router read bytes, or keep them while it does not want any."""
        if self._closing or not data:
            return
        if self._paused or self._kept:
            self._kept.append(data)
        else:
            self._protocol.data_received(data)

    def _deliver_kept(self) -> None:
        while self._kept and not (self._paused or self._closing):
            self._protocol.data_received(self._kept.popleft())

    def deliver_eof(self) -> None:
        if not self._closing:
            self._protocol.eof_received()
            self.close()

    def lose(self, error: Exception | None) -> None:
        """The other side is gone."""
        self._closing = True
        if not self._gone:
            self._gone = True
            self._protocol.connection_lost(error)

    def write(self, data) -> None:
        self._alive()
        if self._eof:
            raise RuntimeError("write after write_eof")
        if not self._closing and data:
            self.peer.received(bytes(data))

    def writelines(self, lines) -> None:
        self.write(b"".join(lines))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.peer.closed(aborted=False)
            self._loop.call_soon(self.lose, None)

    def abort(self) -> None:
        if not self._closing:
            self._closing = True
            self.peer.closed(aborted=True)
            self._loop.call_soon(self.lose, None)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._alive()
        self._paused = True

    def resume_reading(self) -> None:
        self._alive()
        self._paused = False
        self._loop.call_soon(self._deliver_kept)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._alive()
        self._eof = True
        self.peer.eof()

    def set_write_buffer_limits(self, high=None, low=None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name, default=None):
        return default

    def _alive(self) -> None:
        if self._gone:
            raise RuntimeError("unable to perform operation; the handler is closed")
