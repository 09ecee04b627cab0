"""The smallest clusters as a table and in words."""

from __future__ import annotations

from typing import NamedTuple

from spillway.report.sizes import sizes_table, sizes_text


class Sized(NamedTuple):
    prefill_count: int
    decode_count: int
    node_count: int
    attained_frac: float = 0.96
    ttft_p95_s: float = 0.5
    deflected_frac: float = 0.1


FOUND = {
    "least-loaded": [Sized(4, 1, 5), Sized(3, 2, 5)],
    "headroom": [Sized(3, 1, 4), Sized(1, 4, 5)],
    "round-robin": [],
}


def test_the_fewest_nodes_of_each_policy_are_marked() -> None:
    grid = sizes_table(FOUND)
    assert [(row[0].text, row[3].text, row[3].marked) for row in grid.rows] == [
        ("least-loaded", "5", True),
        ("least-loaded", "5", True),
        ("headroom", "4", True),
        ("headroom", "5", False),
    ]
    assert not any(cell.marked for row in grid.rows for cell in (*row[:3], *row[4:]))


def test_a_line_says_what_each_policy_needs_or_that_nothing_sufficed() -> None:
    static, ours, none = sizes_text(FOUND, 0.95, 8)
    assert static == (
        "least-loaded: 5 nodes meet the targets for 95.0 % of the requests (4p1d or 3p2d)."
    )
    assert "4 nodes" in ours
    assert "8 nodes of each kind are not enough" in none
    assert "--nodes-max" in none
