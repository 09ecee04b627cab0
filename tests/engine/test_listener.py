"""The report port: the protocol that routers speak, and that nobody waits for a slow reader."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from spillway.clock import MonotonicClock
from spillway.core.reservation import Ask, Verdict
from spillway.core.types import Role
from spillway.engine import listener as module
from spillway.engine.listener import LINES_MAX, Listener
from spillway.wire.kvparams import HeldKv
from spillway.wire.release import RELEASE_PATH, release_target
from spillway.wire.report import NodeReport, StepTaken, decode
from spillway.wire.reserve import RESERVE_PATH, ReserveAnswer, decode_answer, reserve_target


def a_report(step: int = 0, name: str = "d0") -> NodeReport:
    return NodeReport(
        node_id=name,
        role=Role.DECODE,
        seq=0,
        step=step,
        backlog_prompts=0,
        backlog_tokens=0,
        backlog_token_pairs=0.0,
        decode_seqs=0,
        kv_used_tokens=0,
        kv_capacity_tokens=100_000,
    )


@pytest.fixture
def listener() -> Iterator[Listener]:
    one = Listener("127.0.0.1", 0, clock=MonotonicClock(), interval_s=0.005, heartbeat_s=0.03)
    yield one
    one.close()


class Reader:
    """A client that reads lines off a chunked answer."""

    def __init__(self, listener: Listener, target: str = "/spillway/reports?router=r1") -> None:
        self.socket = socket.create_connection(listener.address, timeout=5)
        self.socket.sendall(f"GET {target} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        self.data = b""

    def head(self) -> str:
        while b"\r\n\r\n" not in self.data:
            self._more()
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        return head.decode()

    def report(self) -> NodeReport:
        while b"\r\n" not in self.data:
            self._more()
        size, _, rest = self.data.partition(b"\r\n")
        while len(rest) < int(size, 16) + 2:
            self._more()
            rest = self.data.partition(b"\r\n")[2]
        line, self.data = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        assert line.endswith(b"\n")
        return decode(line)

    def until(self, step: int) -> NodeReport:
        for _ in range(200):
            report = self.report()
            if report.step >= step:
                return report
        raise AssertionError(f"no report of step {step}")

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self.data += data


def test_a_reader_gets_the_latest_report_and_then_each_new_one(listener: Listener) -> None:
    listener.publish(a_report(step=3))
    Reader(listener).socket.close()  # one who leaves at once is nobody's trouble
    reader = Reader(listener)
    head = reader.head()
    assert head.startswith("HTTP/1.1 200 OK")
    assert "transfer-encoding: chunked" in head
    first = reader.report()
    assert (first.step, first.seq) == (3, 1)
    listener.publish(a_report(step=4))
    second = reader.until(4)
    assert second.seq > first.seq
    reader.socket.close()


def test_silence_is_broken_by_heartbeats_that_repeat_the_last_report(listener: Listener) -> None:
    listener.publish(a_report(step=3))
    reader = Reader(listener)
    reader.head()
    reports = [reader.report() for _ in range(4)]
    assert [one.step for one in reports] == [3] * 4
    assert [one.seq for one in reports] == [1, 2, 3, 4]
    reader.socket.close()


def test_a_reader_that_comes_first_waits_for_the_first_report(listener: Listener) -> None:
    reader = Reader(listener)
    reader.head()
    listener.publish(a_report(step=1))
    assert reader.report().step == 1
    reader.socket.close()


def test_steps_ride_on_the_next_report_once_and_to_every_reader(listener: Listener) -> None:
    listener.publish(a_report())
    readers = [Reader(listener), Reader(listener)]
    for reader in readers:
        reader.head()
        reader.report()
    listener.note_step(StepTaken(1, 4, 100, 0, 0.0, 0.01))
    listener.note_step(StepTaken(2, 4, 104, 0, 0.0, 0.01))
    listener.publish(a_report(step=2))
    for reader in readers:
        seen: list[int] = []
        while len(seen) < 2:
            seen += [one.step for one in reader.report().recent_steps]
        assert seen == [1, 2]
        assert reader.report().recent_steps == ()
        reader.socket.close()


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /metrics HTTP/1.1", "404"),
        ("POST /spillway/reports?router=r1 HTTP/1.1", "405"),
        ("GET /spillway/reports HTTP/1.1", "400"),
        ("nonsense", "404"),
    ],
)
def test_what_is_not_for_us_is_answered_closed_and_counted(
    listener: Listener, request_line: str, status: str
) -> None:
    with socket.create_connection(listener.address, timeout=5) as connection:
        connection.sendall(f"{request_line}\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert listener.dropped["refused"] == 1


def test_an_endless_head_is_cut_off(listener: Listener) -> None:
    with socket.create_connection(listener.address, timeout=5) as connection:
        connection.sendall(b"x" * (module.HEAD_BYTES_MAX + 1))
        with suppress(ConnectionResetError):  # unread bytes turn a close into a reset
            assert connection.recv(1) == b""


@pytest.mark.slow
def test_a_slow_reader_loses_the_oldest_lines_and_only_he_does(listener: Listener) -> None:
    big = a_report(name="n" * 200_000)  # soon fills what the sockets between the two hold
    listener.publish(big)
    slow, quick = Reader(listener), Reader(listener)
    quick.head()
    for step in range(1, 100):
        listener.publish(a_report(step=step, name=big.node_id))
        assert quick.until(step).step == step
    assert listener.dropped["report_line"] > 0
    slow.head()
    seqs = [slow.report().seq for _ in range(LINES_MAX)]
    assert seqs == sorted(seqs)
    assert len(seqs) < slow.until(99).seq  # the gap shows what he missed
    slow.socket.close()
    quick.socket.close()


def test_more_readers_than_allowed_are_turned_away_and_counted(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READERS_MAX", 1)
    listener.publish(a_report())
    first = Reader(listener)
    first.head()
    with socket.create_connection(listener.address, timeout=5) as second:
        assert second.recv(1) == b""
    assert listener.dropped["reader"] == 1
    first.socket.close()


def test_closing_ends_streams_and_may_be_done_twice(listener: Listener) -> None:
    listener.publish(a_report())
    reader = Reader(listener)
    reader.head()
    listener.close()
    listener.close()
    with suppress(ConnectionResetError):
        while reader.socket.recv(65536):
            pass
    listener.publish(a_report(step=9))  # the engine may outlive its listener
    reader.socket.close()


# --- leave to deflect -----------------------------------------------------------------------------


class Asker:
    """A router that asks on one kept connection."""

    def __init__(self, listener: Listener) -> None:
        self.socket = socket.create_connection(listener.address, timeout=5)
        self.data = b""

    def send(self, target: str) -> None:
        self.socket.sendall(f"POST {target} HTTP/1.1\r\ncontent-length: 0\r\n\r\n".encode())

    def ask(self, router_id: str, dispatch_id: int, ahead: int = 500) -> tuple[int, ReserveAnswer]:
        self.send(reserve_target(Ask(router_id, dispatch_id, 1000, 10.0, ahead)))
        status, body = self.answer()
        return status, decode_answer(body)

    def answer(self) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self.data:
            self._more()
        head, _, self.data = self.data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(self.data) < length:
            self._more()
        body, self.data = self.data[:length], self.data[length:]
        return int(head.split(b" ")[1]), body

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError
        self.data += data


Peers = Callable[..., Any]


@pytest.fixture
def peers(listener: Listener) -> Iterator[Peers]:
    """Make readers and askers whose sockets are closed at the end."""
    made: list[Any] = []

    def make(kind: Callable[..., Any], *how: str) -> Any:
        made.append(kind(listener, *how))
        return made[-1]

    yield make
    for one in made:
        one.socket.close()


def test_what_is_granted_counts_until_the_report_that_includes_it(
    listener: Listener, peers: Peers
) -> None:
    listener.publish(a_report())
    asker = peers(Asker)
    assert asker.ask("r1", 1)[0] == 200
    status, answer = asker.ask("r2", 1)
    assert (status, answer.verdict) == (409, Verdict.BACKLOG)
    assert answer.report is not None
    assert (answer.report.backlog_tokens, answer.report.dispatch_seen) == (1000, {"r1": 1})
    listener.note_arrived("r1", 1)
    assert asker.ask("r2", 2)[0] == 409  # it is here, but the report of that is still to come
    listener.publish(a_report(step=1))
    assert asker.ask("r2", 3)[0] == 200


def test_every_router_hears_of_grants_and_of_the_others(listener: Listener, peers: Peers) -> None:
    listener.publish(a_report())
    one, again = peers(Reader), peers(Reader)
    two = peers(Reader, "/spillway/reports?router=r2")
    assert all("200" in reader.head() for reader in (one, again, two))
    while one.report().routers < 2:
        pass
    peers(Asker).ask("r2", 9)
    for reader in (one, two, again):
        while (report := reader.report()).backlog_tokens != 1000:
            pass
        assert report.routers == 2
        assert report.dispatch_seen == {"r2": 9}


def test_an_engine_that_has_said_nothing_grants_nothing(peers: Peers) -> None:
    asker = peers(Asker)
    asker.send(reserve_target(Ask("r1", 1, 1000, 10.0, 500)))
    assert asker.answer()[0] == 503


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"GET {RESERVE_PATH}?router=a HTTP/1.1", 405),
        (f"POST {RESERVE_PATH}?router=a HTTP/1.1", 400),
        ("POST /spillway/reports?router=a HTTP/1.1", 405),
        (f"GET {RELEASE_PATH}?engine=e&request=r HTTP/1.1", 405),
        (f"POST {RELEASE_PATH}?engine=e HTTP/1.1", 400),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    listener: Listener, peers: Peers, head: str, status: int
) -> None:
    listener.publish(a_report())
    asker = peers(Asker)
    asker.socket.sendall(f"{head}\r\n\r\n".encode())
    assert asker.answer()[0] == status
    with pytest.raises(EOFError):
        asker.answer()


def test_kv_to_be_freed_is_kept_for_the_engine_in_order_and_within_bounds(
    listener: Listener, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ORPHANS_MAX", 2)
    asker = peers(Asker)
    statuses = []
    for name in "abc":
        asker.send(release_target(HeldKv("e", name)))
        statuses.append(asker.answer()[0])
    assert statuses == [202, 202, 503]
    assert listener.dropped["orphan"] == 1
    assert list(listener.orphans) == [("e", "a"), ("e", "b")]
    listener.orphans.popleft()
    asker.send(release_target(HeldKv("e", "d")))
    assert asker.answer()[0] == 202


def test_a_kept_connection_takes_orders_and_questions_in_turn(
    listener: Listener, peers: Peers
) -> None:
    listener.publish(a_report())
    asker = peers(Asker)
    asker.send(release_target(HeldKv("e", "a")))
    assert asker.answer()[0] == 202
    assert asker.ask("r1", 1)[0] == 200
    asker.send(release_target(HeldKv("e", "b")))
    assert asker.answer()[0] == 202
    assert len(listener.orphans) == 2
