"""What one client is sent, token by token, and when it is cut off."""

import asyncio
import json

import pytest

from spillway.core.errors import NodeError
from spillway.fakeengine.answering import Envelope
from spillway.fakeengine.asking import AskLimits, Orders, read_ask
from spillway.fakeengine.flight import UNREAD_BYTES_MAX, Flight
from spillway.fakeengine.metrics import EngineMetrics
from spillway.wire.faketext import expected_token, prompt_digest

LIMITS = AskLimits(model="m", context_tokens_max=1000, natural_output_tokens=50)
TEXTS = [expected_token(prompt_digest("hi"), index) for index in range(4)]


class Wire(asyncio.Transport):
    """A transport that keeps what it is given."""

    def __init__(self, unread_bytes: int = 0) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False
        self.unread_bytes = unread_bytes

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes


def make_flight(**body) -> Flight:
    raw = json.dumps({"prompt": "hi", "max_tokens": 4, "stream": True} | body).encode()
    return Flight(
        read_ask(raw, chat=False, limits=LIMITS),
        Orders(request_id=None, dispatch=None, slo_tbt_s=0.06, chunks=()),
        Envelope(chat=False, answer_id="cmpl-1", created_s=0, model="m"),
        EngineMetrics("m"),
        request_id="1",
        node_request_id="cmpl-1-0",
        arrived_s=0.0,
    )


def texts(sent: bytes) -> list[str]:
    frames = [json.loads(part[6:]) for part in sent.decode().split("\n\n") if part[6:7] == "{"]
    return [frame["choices"][0]["text"] for frame in frames]


async def test_every_token_is_sent_once_whenever_the_stream_opens():
    for opened_after in range(5):
        flight, wire = make_flight(), Wire()
        for produced in range(4):
            if produced == opened_after:
                flight.open_stream(wire, chunked=False)
            flight.add_tokens(1, 0.01 * (produced + 1))
        flight.finish()
        if opened_after == 4:
            flight.open_stream(wire, chunked=False)
        assert texts(wire.sent) == TEXTS
        assert wire.sent.endswith(b"data: [DONE]\n\n")
        assert wire.sent.count(b'"finish_reason":"length"') == 1


async def test_a_token_goes_out_as_soon_as_it_is_there():
    flight, wire = make_flight(), Wire()
    flight.open_stream(wire, chunked=True)
    flight.add_tokens(1, 0.01)
    size, _, rest = wire.sent.partition(b"\r\n")
    assert len(rest) == int(size, 16) + 2
    assert texts(rest) == TEXTS[:1]


async def test_a_failure_after_the_first_byte_is_an_error_frame_and_no_done():
    flight, wire = make_flight(), Wire()
    flight.open_stream(wire, chunked=False)
    flight.add_tokens(2, 0.01)
    flight.fail("it broke")
    assert b"it broke" in wire.sent
    assert b"[DONE]" not in wire.sent
    assert flight.outcome() == "failed"
    with pytest.raises(NodeError, match="it broke"):
        await flight.done


async def test_a_failure_after_the_end_changes_nothing():
    flight = make_flight()
    flight.add_tokens(4, 0.01)
    flight.finish()
    flight.fail("too late")
    assert flight.outcome() == "finished"
    await flight.done


async def test_a_reader_that_is_too_slow_is_cut_off_and_counted():
    flight, wire = make_flight(), Wire(unread_bytes=UNREAD_BYTES_MAX + 1)
    flight.open_stream(wire, chunked=True)
    flight.add_tokens(1, 0.01)
    assert wire.aborted
    assert flight._metrics.dropped["slow_reader"] == 1
    assert wire.sent == b""


async def test_a_flight_whose_client_left_can_still_hear_of_its_end():
    flight = make_flight()
    flight.done.cancel()
    flight.add_tokens(4, 0.01)
    flight.finish()
    assert flight.produced_tokens == 4
