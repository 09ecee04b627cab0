"""One end of the KV link: base + bytes / own rate, one transfer at a time."""

from __future__ import annotations

import pytest

from builders import make_spec
from spillway.core.types import Role
from spillway.sim.link import Link

FAST = make_spec("d0", link_bytes_per_s=1e9, link_base_s=0.001)
SLOW = make_spec("d1", link_bytes_per_s=1e8, link_base_s=0.01)


def link() -> Link:
    return Link(make_spec("p0", Role.PREFILL, link_bytes_per_s=5e8, link_base_s=0.002))


def test_an_idle_link_takes_base_plus_bytes_over_rate() -> None:
    assert link().take(3.0, 10**8, FAST) == (3.0, pytest.approx(3.0 + 0.002 + 0.2))


def test_a_slow_other_end_adds_its_latency_and_not_its_rate() -> None:
    assert link().take(0.0, 10**8, SLOW)[1] == pytest.approx(0.01 + 0.2)


def test_transfers_queue_first_in_first_out() -> None:
    egress = link()
    first_s = egress.take(0.0, 10**8, FAST)[1]
    assert egress.take(0.1, 10**8, FAST) == pytest.approx((first_s, first_s + 0.202))
    assert egress.take(10.0, 10**8, FAST)[1] == pytest.approx(10.202)
    assert (egress.transfers, egress.bytes_moved) == (3, 3 * 10**8)
