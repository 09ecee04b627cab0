"""A file of lines that is written off the event loop, from a bounded buffer.

Adding a line is one append to a list; encoding and writing happen in a thread. What the buffer or
the disk has no room for is dropped and counted, because a full disk must not stop the router.
Several processes may share a file: what one writes at a time are whole lines, at its end.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from spillway.clock import Clock
from spillway.core.errors import ConfigError

FLUSH_S = 0.25
STDERR = "-"
WRITE_BYTES = 1 << 20  # of one write, up to the end of a line

T = TypeVar("T")


class LineFile(Generic[T]):
    """Lines on their way into a file; `path` "" is nowhere and STDERR the process's own stderr.

    encode: returns one line, newline included; called in the writing thread.
    is_wanted: whether lines go anywhere at all.
    dropped: lines that the buffer or the disk had no room for.
    """

    def __init__(self, path: str, encode: Callable[[T], bytes], lines_max: int) -> None:
        self._path = path
        self._encode = encode
        self._lines_max = lines_max
        self._waiting: list[T] = []
        self._under_way: asyncio.Future[None] | None = None
        self.is_wanted = bool(path)
        self.dropped = 0

    def check(self, key: str) -> None:
        """Raise ConfigError, naming the setting `key`, if the file cannot be written to."""
        if not self._path or self._path == STDERR:
            return
        try:
            with Path(self._path).open("ab"):
                pass
        except OSError as error:
            raise ConfigError(
                f"{key}: {self._path} cannot be written: {error.strerror}; "
                "name a file in a folder that exists"
            ) from None

    def add(self, item: T) -> None:
        """Take one line, unless the buffer is full."""
        if len(self._waiting) < self._lines_max:
            self._waiting.append(item)
        else:
            self.dropped += 1

    async def write_forever(self, clock: Clock) -> None:
        """Write waiting lines every FLUSH_S until cancelled. Returns at once without a path."""
        while self._path:
            await clock.sleep_until(clock.now_s() + FLUSH_S)
            await asyncio.shield(self._begin_write())  # cancelled or not, it is not lost

    async def finish(self) -> None:
        """Return once every line that was added is written, or dropped and counted."""
        if self._under_way is not None:
            await self._under_way
        await self._begin_write()

    def _begin_write(self) -> asyncio.Future[None]:
        waiting, self._waiting = self._waiting, []
        loop = asyncio.get_running_loop()
        self._under_way = loop.run_in_executor(None, self._write, waiting)
        return self._under_way

    def _write(self, items: list[T]) -> None:
        if not self._path or not items:
            return
        try:
            if self._path == STDERR:
                sys.stderr.buffer.writelines(map(self._encode, items))
                sys.stderr.buffer.flush()
                return
            self._append(list(map(self._encode, items)))
        except OSError:
            self.dropped += len(items)

    def _append(self, lines: list[bytes]) -> None:
        """Write whole lines in one call each time: other processes append to the same file."""
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while lines:
                some, size = 0, 0
                while some < len(lines) and size < WRITE_BYTES:
                    size += len(lines[some])
                    some += 1
                written = os.write(file, b"".join(lines[:some]))
                if written < size:  # the disk is full; end the line that was cut
                    os.write(file, b"\n")
                    self.dropped += len(lines)
                    return
                del lines[:some]
        finally:
            os.close(file)
