"""One JSON line per request and engine: how long each part of the work took on this node.

A router's client sees one TTFT; the lines of both engines with the same request id say where it
went. Only durations, because clocks of two machines cannot be compared.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from spillway.core.errors import ConfigError

FLUSH_BYTES = 64 * 1024


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one node did for one request; wall-clock seconds.

    request_id: X-Request-Id, the same on both legs.
    leg: prefill (KV handed over), decode (KV pulled) or whole (prompt and decode here: a
        deflected prompt, on a decode node).
    outcome: finished | failed | cancelled.
    A part that was not reached, or does not belong to the leg, is None.
    """

    request_id: str
    node_id: str
    role: str
    leg: str
    outcome: str
    prompt_tokens: int
    output_tokens: int
    queued_s: float | None = None
    execute_s: float | None = None
    transfer_s: float | None = None
    admission_s: float | None = None
    first_step_s: float | None = None
    kv_bytes_moved: int = 0


class RecordFile:
    """Appends records to a file, 64 KiB at a time; `flush` writes what is left."""

    def __init__(self, path: str | None) -> None:
        """Make `path` an empty file; None drops every record. Raises ConfigError if it cannot."""
        self._path = None if path is None else Path(path)
        self._buffer = bytearray()
        self._encoder = msgspec.json.Encoder()
        if self._path is not None:
            try:
                self._path.write_bytes(b"")
            except OSError as error:
                raise ConfigError(f"--records {path}: {error.strerror}") from error

    def add(self, record: EngineRecord) -> None:
        if self._path is not None:
            self._buffer += self._encoder.encode(record) + b"\n"
            if len(self._buffer) >= FLUSH_BYTES:
                self.flush()

    def flush(self) -> None:
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(self._buffer)
            self._buffer.clear()


def read_records(path: str | Path) -> list[EngineRecord]:
    """Return the records of one engine's file.

    Raises ConfigError with the line number when a line is not a record.
    """
    decoder = msgspec.json.Decoder(EngineRecord)
    records = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            records.append(decoder.decode(line))
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{path}, line {number}: not an engine record: {error}") from error
    return records
