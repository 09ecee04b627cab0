"""The smallest clusters of each policy as a table, and what deflection saves in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from spillway.report.grid import Cell, Grid
from spillway.report.tables import percent, seconds

SIZES_SCHEMA_VERSION = 1
HEAD = ("policy", "prefill\nnodes", "decode\nnodes", "all", "both\ntargets\nmet %", "TTFT\np95 s",
        "deflec-\nted\n%")  # fmt: skip


class Sized(Protocol):
    """A cluster that was tried, as the simulator tells of it."""

    @property
    def prefill_count(self) -> int: ...
    @property
    def decode_count(self) -> int: ...
    @property
    def node_count(self) -> int: ...
    @property
    def attained_frac(self) -> float: ...
    @property
    def ttft_p95_s(self) -> float: ...
    @property
    def deflected_frac(self) -> float: ...


def sizes_table(found: Mapping[str, Sequence[Sized]]) -> Grid:
    """Return one row per cluster; the fewest nodes of each policy are marked."""
    rows = []
    for policy, steps in found.items():
        fewest = min((one.node_count for one in steps), default=0)
        for one in steps:
            texts = (
                policy,
                str(one.prefill_count),
                str(one.decode_count),
                str(one.node_count),
                percent(one.attained_frac),
                seconds(one.ttft_p95_s),
                percent(one.deflected_frac),
            )
            best = one.node_count == fewest
            rows.append(tuple(Cell(text, best and at == 3) for at, text in enumerate(texts)))
    return Grid(HEAD, tuple(rows))


def sizes_text(
    found: Mapping[str, Sequence[Sized]], wanted_frac: float, nodes_max: int
) -> list[str]:
    """Return a line per policy: the fewest nodes it needs, or that none sufficed."""
    lines = []
    for policy, steps in found.items():
        if not steps:
            lines.append(
                f"{policy}: {nodes_max} nodes of each kind are not enough for "
                f"{percent(wanted_frac)} %; give more with --nodes-max, or loosen the targets."
            )
            continue
        fewest = min(one.node_count for one in steps)
        ways = [f"{s.prefill_count}p{s.decode_count}d" for s in steps if s.node_count == fewest]
        lines.append(
            f"{policy}: {fewest} nodes meet the targets for {percent(wanted_frac)} % of the "
            f"requests ({' or '.join(ways)})."
        )
    return lines
