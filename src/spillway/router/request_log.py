"""One JSON line per request that ended, and per change of a node: the router's structured log.

The hot path appends one tuple per request; everything else happens in the writing thread. No line
holds a header, a prompt, an answer or a key.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from spillway.clock import Clock, unix_s
from spillway.router.line_file import LineFile
from spillway.router.relay import Exchange

LINES_MAX = 50_000


class Ended(NamedTuple):
    """A request that ended at `now_s` of the router's clock. Times are seconds, 0 is unknown."""

    now_s: float
    request_id: str
    route: str
    reason: str
    outcome: str
    node_id: str
    client: str
    class_name: str
    prompt_tokens: int
    output_tokens: int
    arrived_s: float
    first_byte_s: float
    predicted_ttft_s: float


class Noted(NamedTuple):
    """Anything else worth a line. details: plain values by name."""

    now_s: float
    level: str
    event: str
    details: dict[str, Any]


class RequestLog:
    """The log of one router. path: "" for none, "-" for stderr."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._clock = clock
        self._unix_offset_s = unix_s() - clock.now_s()
        self.file: LineFile[Ended | Noted] = LineFile(path, self._line, LINES_MAX)
        self.is_wanted = self.file.is_wanted

    @property
    def dropped(self) -> int:
        return self.file.dropped

    def ended(self, now_s: float, exchange: Exchange, outcome: str, output_tokens: int) -> None:
        """Log the end of a request."""
        view = exchange.view
        self.file.add(
            Ended(
                now_s,
                view.request_id,
                exchange.route,
                exchange.reason,
                outcome,
                exchange.node_id,
                exchange.request.client,
                view.class_name,
                view.prompt_tokens,
                output_tokens,
                view.arrival_s,
                exchange.first_byte_s,
                exchange.predicted_s,
            )
        )

    def note(self, level: str, event: str, **details: Any) -> None:
        """Log something that happens seldom. level: info, warning or error."""
        if self.is_wanted:
            self.file.add(Noted(self._clock.now_s(), level, event, details))

    def _line(self, line: Ended | Noted) -> bytes:
        at_s = line.now_s + self._unix_offset_s
        if isinstance(line, Noted):
            content = {"time_s": round(at_s, 6), "level": line.level, "event": line.event}
            return msgspec.json.encode(content | line.details) + b"\n"
        ttft_s = line.first_byte_s - line.arrived_s if line.first_byte_s else None
        content = {
            "time_s": round(at_s, 6),
            "level": "error" if line.outcome == "failed" else "info",
            "event": "request",
            "request_id": line.request_id,
            "route": line.route,
            "reason": line.reason,
            "outcome": line.outcome,
            "node": line.node_id,
            "client": line.client,
            "class": line.class_name,
            "prompt_tokens": line.prompt_tokens,
            "output_tokens": line.output_tokens,
            "duration_s": round(line.now_s - line.arrived_s, 6),
            "ttft_s": ttft_s and round(ttft_s, 6),
            "predicted_ttft_s": round(line.predicted_ttft_s, 6) or None,
        }
        return msgspec.json.encode(content) + b"\n"
