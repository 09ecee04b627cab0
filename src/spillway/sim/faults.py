"""What goes wrong in a simulated cluster, and when."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

from spillway.core.errors import ConfigError
from spillway.core.types import NodeId


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDies:
    """A node loses everything at `at_s` and answers again, empty, at `back_s` (inf: never)."""

    node_id: NodeId
    at_s: float
    back_s: float = inf

    def __post_init__(self) -> None:
        _check_span(self, self.at_s, self.back_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSlows:
    """A node's steps take `scale_frac` times as long between `at_s` and `until_s`."""

    node_id: NodeId
    at_s: float
    scale_frac: float
    until_s: float = inf

    def __post_init__(self) -> None:
        _check_span(self, self.at_s, self.until_s)
        if not (isfinite(self.scale_frac) and self.scale_frac > 0):
            raise ConfigError(f"{self}: scale_frac must be positive and finite")


Fault = NodeDies | NodeSlows


def _check_span(fault: Fault, at_s: float, until_s: float) -> None:
    if not (isfinite(at_s) and at_s >= 0 and until_s > at_s):
        raise ConfigError(f"{fault}: it must begin at a finite time >= 0 and end after that")
