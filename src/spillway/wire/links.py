"""Named links between nodes, for simulations: what a transfer of KV costs at least.

Rates are 80 % of the line rate, which RDMA and well-set TCP reach; set-up is of one transfer, and
larger over TCP. Source: latency profiles of llm-d-inference-sim (docs/latency-profiles.md there:
NVLink 0.1 to 0.5 ms, RDMA 0.5 to 2 ms, TCP 2 to 10 ms), of which these are about the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.wire.codec import did_you_mean


class NamedLink(NamedTuple):
    """bytes_per_s: one way, at one node.   base_s: before the first byte of a transfer."""

    bytes_per_s: float
    base_s: float
    about: str


LINKS: Mapping[str, NamedLink] = {
    "nvlink": NamedLink(300e9, 0.0002, "NVLink of an A100 within one machine"),
    "400gbps": NamedLink(40e9, 0.001, "InfiniBand NDR or RoCE at 400 Gb/s, with RDMA"),
    "200gbps": NamedLink(20e9, 0.001, "200 Gb/s with RDMA"),
    "100gbps": NamedLink(10e9, 0.001, "100 Gb/s with RDMA"),
    "25gbps": NamedLink(2.5e9, 0.005, "25 Gb/s Ethernet, TCP"),
    "10gbps": NamedLink(1e9, 0.005, "10 Gb/s Ethernet, TCP"),
}


def named_link(name: str) -> NamedLink:
    """Return the link of that name. Raises ConfigError naming the nearest one."""
    if name not in LINKS:
        raise ConfigError(f"link {name!r} is unknown; {did_you_mean(name, list(LINKS))}")
    return LINKS[name]
