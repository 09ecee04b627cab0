"""Lines reach their file, or are counted; what is under way when the router ends is not lost."""

from __future__ import annotations

import asyncio
import os
from threading import Event

import pytest

from spillway.clock import ManualClock
from spillway.core.errors import ConfigError
from spillway.router import line_file
from spillway.router.line_file import FLUSH_S, STDERR, LineFile


def encode(number: int) -> bytes:
    return b"%d\n" % number


async def test_lines_beyond_the_buffer_are_dropped_and_counted(tmp_path) -> None:
    path = tmp_path / "lines"
    file = LineFile(str(path), encode, lines_max=2)
    for number in range(5):
        file.add(number)
    await file.finish()
    file.add(5)
    await file.finish()
    assert (path.read_bytes(), file.dropped) == (b"0\n1\n5\n", 3)


async def test_a_disk_that_fails_is_counted(tmp_path) -> None:
    file = LineFile(str(tmp_path), encode, 10)
    file.add(0)
    await file.finish()
    assert file.dropped == 1


async def test_a_write_that_is_under_way_at_the_end_is_waited_for(tmp_path, until) -> None:
    """Cancelling the writer leaves its thread at work; `finish` returns after it, not before."""
    go_on = Event()

    def slowly(number: int) -> bytes:
        go_on.wait(5.0)
        return encode(number)

    path, clock = tmp_path / "lines", ManualClock()
    file = LineFile(str(path), slowly, 10)
    writer = asyncio.ensure_future(file.write_forever(clock))
    file.add(1)
    await until(clock.next_due_s)
    clock.advance(FLUSH_S)
    await until(lambda: file._under_way is not None)
    writer.cancel()
    file.add(2)
    finish = asyncio.ensure_future(file.finish())
    await asyncio.sleep(0.01)
    assert not finish.done()
    go_on.set()
    await finish
    assert path.read_bytes() == b"1\n2\n"


async def test_lines_can_go_to_stderr(capfdbinary) -> None:
    file = LineFile(STDERR, encode, 10)
    file.check("log_path")
    file.add(7)
    await file.finish()
    assert capfdbinary.readouterr().err == b"7\n"


def test_a_file_that_cannot_be_written_is_a_configuration_error(tmp_path) -> None:
    missing = tmp_path / "missing" / "x.jsonl"
    with pytest.raises(ConfigError, match=r"decision_log_path: .*folder that exists"):
        LineFile(str(missing), encode, 10).check("decision_log_path")


async def test_what_is_written_at_a_time_are_whole_lines_at_the_files_end(
    tmp_path, monkeypatch
) -> None:
    """So two processes can share a file: each write is appended as one piece."""
    path = tmp_path / "lines"
    pieces: list[bytes] = []
    write = os.write

    def watched(file: int, data: bytes) -> int:
        pieces.append(data)
        return write(file, data)

    monkeypatch.setattr(line_file, "WRITE_BYTES", 10)
    monkeypatch.setattr(os, "write", watched)
    one, other = (LineFile(str(path), encode, 100) for _ in range(2))
    for number in range(100, 112):
        one.add(number)
        other.add(number)
    await asyncio.gather(one.finish(), other.finish())
    lines = [piece for piece in pieces if piece[:1].isdigit()]
    assert len(lines) > 4
    assert all(piece.endswith(b"\n") for piece in lines)
    assert sorted(path.read_bytes().split()) == sorted([b"%d" % n for n in range(100, 112)] * 2)


async def test_a_line_that_a_full_disk_cuts_is_ended_and_counted(tmp_path, monkeypatch) -> None:
    path = tmp_path / "lines"
    write = os.write
    room = [4]

    def full(file: int, data: bytes) -> int:
        if data == b"\n" or not data[:1].isdigit():
            return write(file, data)
        return write(file, data[: room[0]])

    monkeypatch.setattr(os, "write", full)
    file = LineFile(str(path), encode, 10)
    file.add(11)
    file.add(22)
    await file.finish()
    monkeypatch.undo()
    assert path.read_bytes() == b"11\n2\n"
    assert file.dropped == 2
