"""The faults of chaos are real ones, and its checks see what they are for."""

from __future__ import annotations

import asyncio
import importlib
import json
import random
import shutil
import subprocess
import sys
import time

import pytest

WHOLE = ["a", "b", "c"]
REPORTS = b"GET /spillway/reports HTTP/1.1\r\n\r\n"


def event(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}]}).encode() + b"\n\n"


def failure(message: str) -> bytes:
    return b"data: " + json.dumps({"error": {"message": message}}).encode() + b"\n\n"


RIGHT = b"".join(map(event, WHOLE)) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("raw", "cut", "end"),
    [
        (RIGHT, False, "finished"),
        (RIGHT.replace(b"b", b"x"), False, "wrong"),
        (event("a") + event("c"), False, "wrong"),
        (event("a") + event("a"), False, "wrong"),
        (event("a"), False, "wrong"),
        (event("a"), True, "cut_mid_stream"),
        (event("a") + b'data: {"cho', True, "cut_mid_stream"),
        (b'data: {"cho', True, "broken"),
        (event("a") + failure("it is safe to try again"), False, "lost_mid_stream"),
        (event("x") + failure("it is safe to try again"), False, "broken"),
        (failure("it is safe to try again"), False, "broken"),
        (event("a") + failure("oh"), False, "unclear"),
    ],
)
def test_how_a_stream_ended_is_seen(raw: bytes, cut: bool, end: str) -> None:
    assert importlib.import_module("chaos").stream_end(200, raw, WHOLE, cut=cut) == end


@pytest.mark.parametrize(
    ("status", "raw", "cut", "end"),
    [
        (200, b'{"choices": [{"text": "abc"}]}', False, "finished"),
        (200, b'{"choices": [{"text": "abd"}]}', False, "wrong"),
        (200, b'{"choi', True, "cut_mid_stream"),
        (200, b"", True, "broken"),
        (503, b"try again later", False, "http_503"),
        (503, b"no", False, "unclear"),
        (503, b"try again later", True, "unclear"),
    ],
)
def test_how_an_answer_ended_is_seen(status: int, raw: bytes, cut: bool, end: str) -> None:
    assert importlib.import_module("chaos").answer_end(status, raw, WHOLE, cut=cut) == end


async def through(spoil: str | None, asked: bytes = b"hello") -> tuple[bytes, str]:
    """Return what comes through a wire from an engine that says 0123456789, and how it ended."""
    bad_wire, free_port = (
        importlib.import_module("bad_wire"),
        importlib.import_module("rig").free_port,
    )

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"0123456789")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(engine, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wire = bad_wire.Wire(free_port(), port, "/spillway/reports", random.Random(1))
    wire.spoil = spoil and bad_wire.Spoil(spoil)
    await wire.up()
    reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
    writer.write(asked)
    try:
        got, end = await asyncio.wait_for(reader.read(), 10.0), "end"
    except ConnectionResetError:
        got, end = b"", "reset"
    writer.close()
    wire.down()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", wire.port)
    return got, end


async def test_a_good_wire_and_a_late_one_change_nothing() -> None:
    assert await through(None) == (b"0123456789", "end")
    assert await through("lag") == (b"0123456789", "end")


async def test_a_wire_resets_truncates_and_garbles() -> None:
    assert (await through("reset"))[1] == "reset"
    got, end = await through("truncate")
    assert end == "end"
    assert len(got) < 10
    assert b"0123456789".startswith(got)
    got, _ = await through("garbage")
    assert len(got) == 10
    assert min(got) >= 128


async def test_a_wire_loses_reports_and_nothing_else() -> None:
    assert await through("report_loss") == (b"0123456789", "end")
    assert await through("report_loss", REPORTS) == (b"", "end")


@pytest.mark.slow  # compiles a C library
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler answers to `cc`")
@pytest.mark.skipif(sys.platform != "linux", reason="the library is preloaded as Linux does it")
def test_a_stepped_wall_clock_steps_and_the_monotonic_one_does_not() -> None:
    clock = importlib.import_module("chaos").WallClock("test-clock")
    asked = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", asked],
        env=clock.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        for by_s in (0, 3600, -7200):
            clock.step(by_s)
            child.stdin.write("\n")
            child.stdin.flush()
            wall_s, monotonic_s = map(float, child.stdout.readline().split())
            assert wall_s - time.time() == pytest.approx(by_s, abs=600)
            assert monotonic_s == pytest.approx(time.monotonic(), abs=600)
        child.stdin.close()
