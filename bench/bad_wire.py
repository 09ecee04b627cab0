"""A wire to one engine that can be made bad: what lies between two machines, on one machine.

The router is given the wire's port, and the wire passes every connection on. What comes back from
the engine is what it spoils. It listens only while its engine runs, so that a dead engine refuses
connections through it too.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from enum import StrEnum

PIECE_BYTES_MAX = 65_536
LAG_S = (0.05, 0.4)
ABORT = struct.pack("ii", 1, 0)  # SO_LINGER of no time: closing sends a reset


class Spoil(StrEnum):
    """What is done to each piece that the engine sends while the wire is bad."""

    LAG = "lag"  # it comes late
    RESET = "reset"  # the connection is reset instead
    TRUNCATE = "truncate"  # some of it comes, then the connection ends as if that were all
    GARBAGE = "garbage"  # other bytes come in its place
    REPORT_LOSS = "report_loss"  # lines of the node's reports never come


class Wire:
    """One engine's wire. spoil: what is wrong with it now; spoilt: its pieces so far, by kind."""

    def __init__(self, port: int, engine_port: int, report_path: str, draw: random.Random) -> None:
        self.port = port
        self.spoil: Spoil | None = None
        self.spoilt: Counter[str] = Counter()
        self._engine_port = engine_port
        self._report_line = f"GET {report_path}".encode()
        self._draw = draw
        self._server: asyncio.Server | None = None
        self._passing: set[asyncio.Task[None]] = set()

    async def up(self) -> None:
        """Listen. Raises OSError if somebody else does."""
        self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)

    def down(self) -> None:
        """Refuse connections; those that are open end with their engine."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _take(self, near: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._connected(near, to))
        self._passing.add(task)  # a loop alone keeps no task alive
        task.add_done_callback(self._passing.discard)

    async def _connected(self, near: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        try:
            far, engine = await asyncio.open_connection("127.0.0.1", self._engine_port)
        except OSError:
            _reset(to)
            return
        first = await near.read(PIECE_BYTES_MAX)
        engine.write(first)
        asking = asyncio.create_task(_pass_on(near, engine))
        try:
            await self._answer(far, to, reports=first.startswith(self._report_line))
        except OSError:
            _reset(to)
        finally:
            asking.cancel()
            to.close()
            engine.close()

    async def _answer(
        self, far: asyncio.StreamReader, to: asyncio.StreamWriter, *, reports: bool
    ) -> None:
        while piece := await far.read(PIECE_BYTES_MAX):
            spoil = self.spoil
            if spoil is Spoil.REPORT_LOSS and not reports:
                spoil = None
            if spoil is not None:
                self.spoilt[spoil] += 1
            if spoil is Spoil.LAG:
                await asyncio.sleep(self._draw.uniform(*LAG_S))
            elif spoil is Spoil.RESET:
                _reset(to)
                return
            elif spoil is Spoil.TRUNCATE:
                to.write(piece[: self._draw.randrange(len(piece))])
                return
            elif spoil is Spoil.GARBAGE:
                # No byte of it is ASCII, so that no reader can take it for what was sent.
                piece = bytes(self._draw.randrange(128, 256) for _ in range(len(piece)))
            elif spoil is Spoil.REPORT_LOSS:
                continue
            to.write(piece)
            await to.drain()


async def _pass_on(near: asyncio.StreamReader, engine: asyncio.StreamWriter) -> None:
    """Pass on what the router sends; when it leaves, the engine learns of it."""
    try:
        while piece := await near.read(PIECE_BYTES_MAX):
            engine.write(piece)
            await engine.drain()
    except OSError:
        pass
    engine.close()


def _reset(to: asyncio.StreamWriter) -> None:
    sock: socket.socket | None = to.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    to.transport.abort()
