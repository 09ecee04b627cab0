"""One quantity of several programs, measured in alternation, and what its rounds say about them.

Two programs are compared within a round and not by their medians: a slow spell of the machine then
meets both. The ratio is this project's value over the peer's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

OURS = "spillway"
DIRECT = "direct"  # no program in between: the values that added latencies are the difference to
FLOOR = "bare relay"  # it only passes bytes on: nobody competes with it
ROUNDS_FRAC_MIN = 0.5  # of the rounds must give a ratio, or there is none


class Spread(NamedTuple):
    """The median of some samples, the lowest and the highest."""

    median: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A quantity of several programs under one load, a value a round; None where a round gave none.

    setting: mode and placement.  better: `less` or `more`, or `equal` for what should agree.
    targets: by peer, what ours over the peer's must not exceed, or must reach if more is better; of
    what should agree, by how much it may differ from 1.
    """

    setting: str
    load: str
    quantity: str
    unit: str
    samples: Mapping[str, Sequence[float | None]]
    better: Literal["less", "more", "equal"] = "less"
    targets: Mapping[str, float] = MappingProxyType({})

    def spread(self, name: str) -> Spread | None:
        """Return the spread of one program's values."""
        return spread(value for value in self.samples[name] if value is not None)

    def ratios(self) -> dict[str, Spread]:
        """Return, by peer, ours over the peer's within the rounds, where most rounds gave one.

        A round in which either is not positive gives none: an added latency below the noise.
        """
        ours, found = self.samples.get(OURS, ()), {}
        for name, theirs in self.samples.items():
            if name in (OURS, DIRECT):
                continue
            pairs = zip(ours, theirs, strict=True)
            values = [mine / other for mine, other in pairs if (mine or 0) > 0 and (other or 0) > 0]
            if values and len(values) >= ROUNDS_FRAC_MIN * len(ours):
                found[name] = Spread(median(values), min(values), max(values))
        return found

    def verdict(self, peer: str) -> str:
        """Return who is better, ours `won` or `lost`, or `level` if the rounds disagree.

        Nothing where there is no ratio, or nothing to win.
        """
        ratio = self.ratios().get(peer)
        if ratio is None or self.better == "equal" or peer == FLOOR:
            return ""
        low, high = ratio.low, ratio.high
        if self.better == "more":
            low, high = 1 / high, 1 / low
        return "won" if high < 1 else "lost" if low > 1 else "level"

    def missed(self, peer: str) -> bool:
        """Return whether the median ratio to a peer misses its target."""
        ratio, target = self.ratios().get(peer), self.targets.get(peer)
        if ratio is None or target is None:
            return False
        if self.better == "equal":
            return abs(ratio.median - 1) > target
        excess = ratio.median - target
        return excess < 0 if self.better == "more" else excess > 0

    def as_json(self) -> dict[str, Any]:
        """Return what a result file keeps: spreads, ratios, verdicts and every sample."""
        spreads = {name: self.spread(name) for name in self.samples}
        return {
            "setting": self.setting,
            "load": self.load,
            "quantity": self.quantity,
            "unit": self.unit,
            "better": self.better,
            "targets": dict(self.targets),
            "programs": {name: one._asdict() for name, one in spreads.items() if one is not None},
            "ratios": {
                peer: ratio._asdict() | {"verdict": self.verdict(peer), "missed": self.missed(peer)}
                for peer, ratio in self.ratios().items()
            },
            "samples": {name: list(values) for name, values in self.samples.items()},
        }


class Absent(NamedTuple):
    """Something that was to be measured and was not, and why. ours: which is an error."""

    name: str
    reason: str
    ours: bool = False


def spread(values: Iterable[float]) -> Spread | None:
    """Return the spread of some values, or None if there are none."""
    known = sorted(values)
    return Spread(median(known), known[0], known[-1]) if known else None
