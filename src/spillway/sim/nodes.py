"""Nodes that differ from the rest of a simulated cluster."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from spillway.core.errors import ConfigError
from spillway.core.types import ChunkMode, NodeId
from spillway.wire.codec import did_you_mean
from spillway.wire.links import named_link


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChange:
    """What one node has of its own; None is as the scenario has it.

    bias_frac: how its true step times differ from its profile, which the router does not know. The
    other fields are those of `core.types.NodeSpec`.
    """

    profile: str | None = None
    kv_capacity_tokens: int | None = None
    link_bytes_per_s: float | None = None
    link_base_s: float | None = None
    step_tokens_max: int | None = None
    chunk_mode: ChunkMode | None = None
    chunk_tokens_max: int | None = None
    chunk_tokens_multiple: int | None = None
    seqs_max: int | None = None
    tbt_margin_frac: float | None = None
    bias_frac: float | None = None

    def given(self) -> dict[str, Any]:
        """Return what was given, by name."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in every.items() if value is not None}

    def of_spec(self) -> dict[str, Any]:
        """Return what was given of the fields that `NodeSpec` takes as they are."""
        not_as_is = ("profile", "bias_frac")
        return {name: value for name, value in self.given().items() if name not in not_as_is}


_KINDS = {field.name: str(field.type).removesuffix(" | None") for field in fields(NodeChange)}
_PARSERS = {"str": str, "int": int, "float": float, "ChunkMode": ChunkMode}
# Shorter names for what is given most often, and a link by its name.
_ALIASES = {"bias": "bias_frac"}
LINK = "link"


def parse_node_change(text: str) -> tuple[NodeId, NodeChange]:
    """Return the node and what it has of its own, from `d1=profile:qwen3-8b-h100,link:100gbps`.

    Raises ConfigError naming the part that is wrong.
    """
    node_id, found, settings = text.partition("=")
    if not (found and node_id and settings):
        raise ConfigError(f"node {text!r} is not of the form d1=profile:NAME,seqs_max:64")
    given: dict[str, Any] = {}
    for setting in settings.split(","):
        key, found, value = setting.partition(":")
        name = _ALIASES.get(key, key)
        if not found:
            raise ConfigError(f"node {node_id}: {setting!r} is not of the form key:value")
        if name == LINK:
            link = named_link(value)
            given |= {"link_bytes_per_s": link.bytes_per_s, "link_base_s": link.base_s}
        elif name not in _KINDS:
            known = [*_KINDS, *_ALIASES, LINK]
            raise ConfigError(f"node {node_id}: {key!r} is unknown; {did_you_mean(key, known)}")
        else:
            given[name] = _parsed(node_id, name, value)
    return node_id, NodeChange(**given)


def _parsed(node_id: NodeId, name: str, value: str) -> Any:
    kind = _KINDS[name]
    try:
        parsed = _PARSERS[kind](value)
    except ValueError:
        allowed = ", ".join(ChunkMode) if kind == "ChunkMode" else f"a {kind} is needed"
        raise ConfigError(f"node {node_id}: {name} is {value!r}; {allowed}") from None
    if isinstance(parsed, float) and not isfinite(parsed):
        raise ConfigError(f"node {node_id}: {name} is {value!r}; it must be finite")
    return parsed
