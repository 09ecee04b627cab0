"""Named links: ordered as their names say, and known by the nearest name."""

from __future__ import annotations

from itertools import pairwise

import pytest

from spillway.core.errors import ConfigError
from spillway.wire.links import LINKS, named_link


def test_links_are_as_fast_as_their_names() -> None:
    for faster, slower in pairwise(LINKS.values()):
        assert faster.bytes_per_s > slower.bytes_per_s
        assert faster.base_s <= slower.base_s
    for name, link in LINKS.items():
        if name.endswith("gbps"):
            line_bytes_per_s = float(name.removesuffix("gbps")) * 1e9 / 8
            assert link.bytes_per_s == pytest.approx(0.8 * line_bytes_per_s)


def test_an_unknown_link_names_the_nearest() -> None:
    assert named_link("25gbps").bytes_per_s == 2.5e9
    with pytest.raises(ConfigError, match=r"link '25gb' is unknown; did you mean '25gbps'"):
        named_link("25gb")
