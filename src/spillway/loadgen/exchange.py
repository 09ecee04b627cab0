"""What one request went through, as the client saw it: the measuring, apart from the network.

TTFT runs from the moment the request is sent to the first event that carries text. A gap is the
time between two successive events that carry text: an event with several tokens is one arrival to
whoever reads the stream, and two events in one read are 0 s apart.
"""

from __future__ import annotations

import msgspec

from spillway.core.errors import NodeError
from spillway.core.types import Slo
from spillway.stats import GapHistogram
from spillway.wire.faketext import expected_token
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row

DONE = b"[DONE]"


class _Choice(msgspec.Struct):
    text: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int | None = None


class _Error(msgspec.Struct):
    message: str = ""
    type: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


_EVENT = msgspec.json.Decoder(_Event)


class TextCheck:
    """Compares a stream with the text that a simulated engine must write (wire/faketext.py)."""

    __slots__ = ("_digest", "_rest", "seen_tokens")

    def __init__(self, digest: int) -> None:
        self._digest = digest
        self._rest = ""
        self.seen_tokens = 0

    def feed(self, text: str) -> None:
        """Take the next piece of text. Raises NodeError on the first wrong token."""
        text = self._rest + text
        while text:
            expected = expected_token(self._digest, self.seen_tokens)
            if text.startswith(expected):
                text = text[len(expected) :]
                self.seen_tokens += 1
            elif expected.startswith(text):
                break  # a token cut in two
            else:
                got = text[: len(expected) + 8]
                raise NodeError(f"token {self.seen_tokens} should be {expected!r}, got {got!r}")
        self._rest = text

    def finish(self, output_tokens: int) -> None:
        """Raise NodeError unless exactly `output_tokens` tokens came."""
        if self._rest or self.seen_tokens != output_tokens:
            raise NodeError(f"{self.seen_tokens} tokens came where {output_tokens} were asked for")


class Exchange:
    """Figures of one request, filled in as its events arrive."""

    __slots__ = (
        "_check",
        "_events",
        "_finish_s",
        "_first_s",
        "_gap_max_s",
        "_gaps",
        "_gaps_late",
        "_last_s",
        "_slo",
        "_usage_tokens",
        "error",
        "outcome",
        "reason",
        "request_id",
        "route",
        "row",
        "sent_s",
    )

    def __init__(
        self,
        request_id: str,
        row: Row,
        slo: Slo,
        gaps: GapHistogram,
        check: TextCheck | None = None,
    ) -> None:
        """`gaps` collects the gaps of all requests; `check`, if given, judges the text."""
        self.request_id = request_id
        self.row = row
        self.sent_s: float | None = None
        self.route = ""
        self.reason = ""
        self.outcome = ""
        self.error = ""
        self._slo = slo
        self._gaps = gaps
        self._check = check
        self._events = 0
        self._usage_tokens: int | None = None
        self._gaps_late = 0
        self._gap_max_s = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._finish_s: float | None = None

    def take(self, data: bytes, now_s: float) -> None:
        """Take the data of one event that was read at `now_s`. Raises NodeError on a bad one."""
        if self.outcome:
            return  # nothing after the end counts
        if data == DONE:
            if self._check is not None:
                self._check.finish(self.row.output_tokens)
            self.end("finished", now_s)
            return
        try:
            event = _EVENT.decode(data)
        except msgspec.DecodeError as error:
            raise NodeError(f"an event is no completion chunk: {error}") from None
        if event.error is not None:
            message = event.error if isinstance(event.error, str) else event.error.message
            raise NodeError(f"error frame: {message or 'without a message'}")
        if event.usage is not None:
            self._usage_tokens = event.usage.completion_tokens
        text = "".join(choice.text or "" for choice in event.choices)
        if text:
            self._text_came(now_s)
            if self._check is not None:
                self._check.feed(text)

    def _text_came(self, now_s: float) -> None:
        if self._first_s is None:
            self._first_s = now_s
        else:
            gap_s = now_s - self._last_s
            self._gaps.add(gap_s)
            if gap_s > self._slo.tbt_s:
                self._gaps_late += 1
            if gap_s > self._gap_max_s:
                self._gap_max_s = gap_s
        self._last_s = now_s
        self._events += 1

    def end(self, outcome: str, now_s: float, error: str = "") -> None:
        """Settle how the request ended; the first word counts."""
        if not self.outcome:
            self.outcome, self.error, self._finish_s = outcome, error, now_s

    def record(self, start_s: float) -> RequestRecord:
        """Return the request's line, with times relative to the run's `start_s`.

        A request that was never sent arrived when it was due. output_tokens is what came: by the
        server's own count if it gave one, else by the events.
        """
        sent_s, first_s = self.sent_s, self._first_s
        gaps = max(0, self._events - 1)
        return RequestRecord(
            request_id=self.request_id,
            arrival_s=self.row.arrival_s if sent_s is None else sent_s - start_s,
            prompt_tokens=self.row.prompt_tokens,
            output_tokens=self._events if self._usage_tokens is None else self._usage_tokens,
            slo_ttft_s=self._slo.ttft_s,
            slo_tbt_s=self._slo.tbt_s,
            outcome=self.outcome,
            class_name=self.row.class_name,
            route=self.route,
            reason=self.reason,
            ttft_s=None if first_s is None or sent_s is None else first_s - sent_s,
            gaps=gaps,
            gaps_late=self._gaps_late,
            gap_mean_s=0.0 if first_s is None or not gaps else (self._last_s - first_s) / gaps,
            gap_max_s=self._gap_max_s,
            finish_s=None if self._finish_s is None else self._finish_s - start_s,
            error=self.error,
        )
