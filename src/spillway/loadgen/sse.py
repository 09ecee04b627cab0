"""Cuts a byte stream of server-sent events into the data of each event."""

from __future__ import annotations

from spillway.core.errors import NodeError

EVENT_BYTES_MAX = 1 << 20


class EventReader:
    """Holds the unfinished tail of a stream between reads."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        self._tail = b""

    def feed(self, received: bytes) -> list[bytes]:
        """Return the data of every event that is now complete.

        Comments and fields other than `data` are skipped, as the format asks. Raises NodeError
        when an event grows beyond EVENT_BYTES_MAX.
        """
        pending = self._tail + received
        if b"\r" in pending:
            # A CR at the very end, half of a CRLF perhaps, stays for the next read.
            pending = pending.replace(b"\r\n", b"\n")
        *events, self._tail = pending.split(b"\n\n")
        if len(self._tail) > EVENT_BYTES_MAX:
            raise NodeError(f"an event of the stream is longer than {EVENT_BYTES_MAX} bytes")
        return [data for event in events if (data := _data(event)) is not None]


def _data(event: bytes) -> bytes | None:
    lines = [
        line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")
    ]
    return b"\n".join(lines) if lines else None
