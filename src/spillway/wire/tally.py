"""Takes request records in one at a time and says at the end what they come to.

A run of a million requests need not keep a million records for its summary: counts are added up
at once, and the few figures that have to be sorted at the end stay as columns of plain numbers.
`results.py` makes the published figures of it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from math import isnan, nan

from spillway.stats import percentile
from spillway.wire.records import RequestRecord, TtftParts

LATE_GAPS_MAX_PER_100 = 1  # of a request's token gaps, for tbt_99 and joint_99
PARTS = TtftParts.__struct_fields__


class Tally:
    """What the records of one run come to; 48 bytes for each request.

    outcomes, routes, reasons: requests by each; without a route or a reason they are not counted.
    in_*: requests with a first token, and not failed, that met the target of `Attainment`.
    """

    def __init__(self, requests: int) -> None:
        """Make room for `requests` records."""
        self.outcomes: dict[str, int] = {}
        self.routes: dict[str, int] = {}
        self.reasons: dict[str, int] = {}
        self.gaps = 0
        self.gaps_late = 0
        self.kv_bytes_moved = 0
        self.in_ttft = 0
        self.in_tbt_mean = 0
        self.in_tbt_99 = 0
        self.in_joint_mean = 0
        self.in_joint_99 = 0
        # NaN: no token came, or its parts are not known.
        self._ttft_s = array("d", [nan]) * requests
        self._parts_s = {name: array("d", [nan]) * requests for name in PARTS}

    def add(self, at: int, record: RequestRecord) -> None:
        """Take in the record of request number `at`, counted from 0. Once for each."""
        outcome, route, reason = record.outcome, record.route, record.reason
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        if route:
            self.routes[route] = self.routes.get(route, 0) + 1
        if reason:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
        gaps, gaps_late, ttft_s, parts = record.gaps, record.gaps_late, record.ttft_s, record.parts
        self.gaps += gaps
        self.gaps_late += gaps_late
        self.kv_bytes_moved += record.kv_bytes_moved
        if ttft_s is None:
            return
        self._ttft_s[at] = ttft_s
        if parts is not None:
            for name, column in self._parts_s.items():
                column[at] = getattr(parts, name)
        if outcome == "failed":
            return
        # A request with one token has no gap and so meets its TBT target.
        in_ttft = ttft_s <= record.slo_ttft_s
        in_mean = record.gap_mean_s <= record.slo_tbt_s
        in_99 = gaps_late * 100 <= gaps * LATE_GAPS_MAX_PER_100
        self.in_ttft += in_ttft
        self.in_tbt_mean += in_mean
        self.in_tbt_99 += in_99
        self.in_joint_mean += in_ttft and in_mean
        self.in_joint_99 += in_ttft and in_99

    def ttfts_s(self) -> list[float]:
        """Return the TTFTs in ascending order, seconds. O(n log n)."""
        return sorted(ttft_s for ttft_s in self._ttft_s if not isnan(ttft_s))

    def parts_p95_s(self) -> dict[str, float]:
        """Return the mean of each part of the TTFTs between p93 and p97, seconds; {} of none.

        With too few requests for one to lie between them, the one next to p95 speaks. O(n log n).
        """
        ttft_s, any_part = self._ttft_s, next(iter(self._parts_s.values()))
        known = [at for at in range(len(ttft_s)) if not isnan(any_part[at])]
        if not known:
            return {}
        ttfts_s = sorted(ttft_s[at] for at in known)
        low_s, high_s = percentile(ttfts_s, 0.93), percentile(ttfts_s, 0.97)
        band = [at for at in known if low_s <= ttft_s[at] <= high_s]
        if not band:
            rank = round(0.95 * (len(known) - 1))
            equal = [at for at in known if ttft_s[at] == ttfts_s[rank]]
            band = [equal[rank - bisect_left(ttfts_s, ttfts_s[rank])]]
        band.sort(key=ttft_s.__getitem__)
        return {
            name: sum(column[at] for at in band) / len(band)
            for name, column in self._parts_s.items()
        }
