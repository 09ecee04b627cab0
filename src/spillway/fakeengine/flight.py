"""One request under way on this engine: what it asked, how far it is, and its client's transport.

The node's outcomes arrive here as plain calls from the pacing timer and go straight to the
transport, so a token costs no task switch. The HTTP handler only waits for `first` and `done`.
"""

from __future__ import annotations

import asyncio

from spillway.core.errors import NodeError
from spillway.fakeengine.answering import Envelope, error_frame, usage
from spillway.fakeengine.asking import Ask, Orders
from spillway.fakeengine.metrics import EngineMetrics
from spillway.sim.residents import Resident
from spillway.wire.faketext import expected_token

UNREAD_BYTES_MAX = 4 * 1024 * 1024  # a stream whose reader is this far behind is cut off


class Flight:
    """A request between its body and its last byte.

    request_id: X-Request-Id, the same on every engine. node_request_id: unique on this engine; a
        decode engine pulls by it.
    first: done at the first token. done: done at the last one. Both end in a NodeError if the
        request fails before.
    leg, submitted_s (to the node), resident, cached_tokens, kv_bytes_moved: noted by the engine
        for the record.
    """

    def __init__(
        self,
        ask: Ask,
        orders: Orders,
        envelope: Envelope,
        metrics: EngineMetrics,
        *,
        request_id: str,
        node_request_id: str,
        arrived_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ask = ask
        self.orders = orders
        self.request_id = request_id
        self.node_request_id = node_request_id
        self.arrived_s = arrived_s
        self.submitted_s = arrived_s
        self.first: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()
        self.leg = ""
        self.resident: Resident | None = None
        self.cached_tokens = 0
        self.kv_bytes_moved = 0
        self.produced_tokens = 0
        self._sent_tokens = 0
        self._finished = False
        self._error: str | None = None
        self._token_at_s = arrived_s
        self._envelope = envelope
        self._metrics = metrics
        self._transport: asyncio.WriteTransport | None = None
        self._chunked = True

    # --- what the node says --------------------------------------------------------------------

    def add_tokens(self, tokens: int, at_s: float) -> None:
        """Take note of `tokens` more tokens, the last of which was ready at `at_s`."""
        if self.produced_tokens == 0:
            self._metrics.ttft.observe(at_s - self.arrived_s)
            self._metrics.prompt_tokens += self.ask.prompt_tokens
        else:
            self._metrics.gap.observe(at_s - self._token_at_s)
        self._token_at_s = at_s
        self.produced_tokens += tokens
        self._metrics.output_tokens += tokens
        if not self.first.done():
            self.first.set_result(None)
        if self._transport is not None:
            self._flush()

    def finish(self) -> None:
        """Take note that the last token was produced."""
        self._finished = True
        if not self.done.done():  # cancelled, when the client left a moment ago
            self.done.set_result(None)
        if self._transport is not None:
            self._flush()

    def fail(self, reason: str) -> None:
        """End the request with an error, once; a stream already open gets an error frame."""
        if self.done.done():
            return
        self._error = reason
        for future in (self.first, self.done):
            if not future.done():
                future.set_exception(NodeError(reason))
                future.exception()  # looked at, because a handler may wait for only one of them
        if self._transport is not None:
            self._flush()

    def outcome(self) -> str:
        """Return finished, failed, or cancelled for a request that has not ended by itself."""
        if self._error is not None:
            return "failed"
        return "finished" if self._finished else "cancelled"

    # --- what the client gets ------------------------------------------------------------------

    def body(self, kv_transfer_params: dict[str, object] | None) -> bytes:
        """Return the whole answer; call when `done`."""
        text = "".join(self._texts(0, self.produced_tokens))
        reason = self.ask.finish_reason
        return self._envelope.body(text, reason, self._usage(), kv_transfer_params)

    def open_stream(self, transport: asyncio.WriteTransport, *, chunked: bool) -> None:
        """Write what was produced so far, and from now on every token as it comes.

        The status line and headers have been sent. `chunked`: frame as HTTP/1.1 chunks.
        """
        self._transport = transport
        self._chunked = chunked
        self._write(self._envelope.opening())
        self._flush()

    def close_stream(self) -> None:
        """Write nothing more."""
        self._transport = None

    def _flush(self) -> None:
        """Write what is new. The last token goes with the ending, which says why it is the last."""
        until = min(self.produced_tokens, self.ask.output_tokens - 1)
        data = self._envelope.tokens(self._texts(self._sent_tokens, until))
        self._sent_tokens = until
        if self._error is not None:
            data += error_frame(self._error)
        elif self._finished:
            counts = self._usage() if self.ask.include_usage else None
            (last,) = self._texts(until, until + 1)
            data += self._envelope.ending(last, self.ask.finish_reason, counts)
        self._write(data)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or not data or transport.is_closing():
            return
        if transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self._metrics.dropped["slow_reader"] += 1
            transport.abort()
            return
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def _texts(self, start: int, stop: int) -> list[str]:
        digest = self.ask.prompt_digest
        return [expected_token(digest, index) for index in range(start, stop)]

    def _usage(self) -> dict[str, object]:
        return usage(self.ask.prompt_tokens, self.produced_tokens, self.cached_tokens)
