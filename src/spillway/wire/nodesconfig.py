"""What the configuration may say of nodes: those that are listed, and what holds for all."""

from __future__ import annotations

import msgspec

from spillway.core.types import ChunkMode
from spillway.wire.bounds import AtLeastOne, Count, NotNegative, Positive, Share, Text
from spillway.wire.profile import DEFAULT_PROFILE


class NodeDefaults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What holds for every node that does not say otherwise; the fields of `core.types.NodeSpec`.

    profile: a built-in name, or a file relative to the configuration.
    kv_capacity_tokens: None takes the profile's; 0 is unknown, which vetoes deflection.
    """

    profile: Text = DEFAULT_PROFILE
    kv_capacity_tokens: Count | None = None
    link_bytes_per_s: Positive = 25e9
    link_base_s: NotNegative = 0.002
    step_tokens_max: AtLeastOne = 2048
    chunk_mode: ChunkMode = ChunkMode.ENGINE
    chunk_tokens_max: AtLeastOne = 2048
    chunk_tokens_multiple: AtLeastOne = 64
    tbt_margin_frac: Share = 0.9
    seqs_max: AtLeastOne = 256


class PrefillNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One prefill node. name: None numbers it p0, p1, ...; any other None takes the default.

    report_url: where the plug-in of a real engine reports; None: reports come from `url`, if any.
    """

    url: Text
    name: Text | None = None
    profile: Text | None = None
    kv_capacity_tokens: Count | None = None
    link_bytes_per_s: Positive | None = None
    link_base_s: NotNegative | None = None
    step_tokens_max: AtLeastOne | None = None
    report_url: Text | None = None


class DecodeNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One decode node. name: None numbers it d0, d1, ...; any other None takes the default.

    report_url: as for a prefill node.
    """

    url: Text
    name: Text | None = None
    profile: Text | None = None
    kv_capacity_tokens: Count | None = None
    link_bytes_per_s: Positive | None = None
    link_base_s: NotNegative | None = None
    chunk_mode: ChunkMode | None = None
    chunk_tokens_max: AtLeastOne | None = None
    chunk_tokens_multiple: AtLeastOne | None = None
    seqs_max: AtLeastOne | None = None
    report_url: Text | None = None


class NodesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The two pools."""

    prefill: list[PrefillNode] = []
    decode: list[DecodeNode] = []
