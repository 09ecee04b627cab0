"""What the configuration may say of finding nodes that it does not list."""

from __future__ import annotations

import msgspec

from spillway.wire.bounds import Positive


class DiscoveryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names, as HOST:PORT, each of whose addresses is a node of the role, beside those listed."""

    prefill: str = ""
    decode: str = ""
    interval_s: Positive = 5.0
