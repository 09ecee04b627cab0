"""A few hundred inputs for every surface; `make fuzz` has the rest. And: faults are found."""

from __future__ import annotations

import asyncio

import pytest

from fuzzing.answers import answers
from fuzzing.memory import Fault, MemoryLoop
from fuzzing.rig import ClientEnd, Rig
from fuzzing.surfaces import BATCH, SURFACES, Found, fuzz
from spillway.core.policies import build_policy
from spillway.router.shell import Shell

BODY = b'{"model":"m","prompt":"x"}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 26\r\n\r\n" + BODY


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SURFACES))
def test_no_input_does_harm(name: str) -> None:
    ends = fuzz(name, 1, 0, BATCH + 20)
    assert ends.total() >= BATCH + 20
    assert len(ends) > 1  # not all of them were turned away at the door


def test_an_input_that_raises_is_found_and_named(monkeypatch) -> None:
    def broken(*_, **__) -> None:
        raise KeyError("x")

    monkeypatch.setattr(Shell, "submit", broken)
    with pytest.raises(Found) as found:
        fuzz("client", 1, 0, BATCH)
    assert isinstance(found.value.__cause__, KeyError)
    assert 0 <= found.value.number < BATCH


def test_a_hang_is_an_error() -> None:
    loop = MemoryLoop()

    def again() -> None:
        loop.call_soon(again)

    again()
    with pytest.raises(Fault, match="no end"):
        loop.run()


def test_the_router_in_memory_answers_as_on_sockets() -> None:
    with Rig(build_policy("least-loaded")) as rig:
        assert asyncio.get_running_loop() is rig.loop
        client = ClientEnd(rig)
        client.transport.deliver(REQUEST + REQUEST)
        rig.loop.run()
        got = answers(bytes(client.got), is_closed=False)
        assert [(one.status, one.is_whole) for one in got] == [(200, True)] * 2
        rig.settle()
        rig.check_empty()


@pytest.mark.parametrize(
    "got",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n",
        b"\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n",
    ],
)
def test_a_malformed_answer_is_a_fault(got: bytes) -> None:
    with pytest.raises(Fault):
        answers(got, is_closed=True)
