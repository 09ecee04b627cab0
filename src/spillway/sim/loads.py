"""Requests of a workload at a chosen rate: how a sweep offers the same traffic at several loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.workload.operations import speed_up, window
from spillway.workload.row import Row
from spillway.workload.seeds import stream
from spillway.workload.synthetic import FAMILIES, family


class Source(NamedTuple):
    """Where requests come from: a synthetic family, or the rows of a trace."""

    family: str = ""
    rows: tuple[Row, ...] = ()

    def usual_rate_per_s(self) -> float:
        """Return the rate to start a search from."""
        if self.family:
            return FAMILIES[self.family].rate_per_s
        return len(self.rows) / max(self.rows[-1].arrival_s, 1e-9)

    def draw(self, seed: int, requests: int, rate_per_s: float) -> list[Row]:
        """Return about `requests` requests that arrive at `rate_per_s` on average.

        A family is drawn at the rate. Of a trace, `seed` picks a window of so many consecutive
        requests, which is then sped up or slowed down to have the rate. Raises ConfigError when the
        draw is empty.
        """
        if self.family:
            rows = family(self.family, seed, requests / rate_per_s, rate_per_s)
        else:
            rows = _at_rate(self._window(seed, requests), rate_per_s)
        if not rows:
            raise ConfigError(
                f"{self.family or 'the trace'}: {requests} requests at {rate_per_s:g}/s draw none; "
                "ask for more requests"
            )
        return rows

    def _window(self, seed: int, requests: int) -> list[Row]:
        latest = len(self.rows) - requests
        first = stream(seed, "sweep.window").randint(0, latest) if latest > 0 else 0
        start_s = self.rows[first].arrival_s
        return window(self.rows[first : first + requests], start_s)


def _at_rate(rows: Sequence[Row], rate_per_s: float) -> list[Row]:
    """Return the rows at the mean rate; a window whose rows all arrive at once stays as it is."""
    span_s = rows[-1].arrival_s
    return speed_up(rows, rate_per_s * span_s / len(rows)) if span_s > 0 else list(rows)
