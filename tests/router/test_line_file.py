"""Lines reach their file, or are counted; what is under way when the router ends is not lost."""

from __future__ import annotations

import asyncio
from threading import Event

import pytest

from spillway.clock import ManualClock
from spillway.core.errors import ConfigError
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
