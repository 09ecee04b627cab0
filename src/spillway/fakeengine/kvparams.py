"""The `kv_transfer_params` object of vLLM 0.32 with NIXL, pull mode: read it, and hand it out.

A prefill engine answers with the fourteen keys of `handover_params`; a router passes them on
unchanged, and the decode engine finds in them from whom to pull. This module knows the object and
nothing of HTTP, leases or links.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, NamedTuple

import msgspec

from spillway.core.errors import NodeError

BLOCK_TOKENS = 16  # vLLM's default block size; only the number of block ids depends on it


class BadKvParams(NodeError):
    """The object cannot be followed. A real engine crashes or hangs on most of these."""


class HoldKv(NamedTuple):
    """Prefill only, and keep the KV for another engine to pull (`do_remote_decode`)."""


class PullKv(NamedTuple):
    """The prompt's KV is ready elsewhere: fetch it (`do_remote_prefill`).

    request_id: the engine-internal id under which the prefill engine holds the KV.
    cached_tokens: what the prefill engine found in its own prefix cache, for `usage`.
    """

    engine_id: str
    request_id: str
    host: str
    port: int
    kv_tokens: int
    cached_tokens: int


class _Source(msgspec.Struct):
    """The keys a decode engine needs; the others may be missing, as before vLLM 0.22."""

    remote_engine_id: str
    remote_request_id: str
    remote_block_ids: list[Annotated[int, msgspec.Meta(ge=0)]]
    remote_host: str
    remote_port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    remote_num_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    remote_prefill_cached_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0


def read_params(params: dict[str, Any] | None, prompt_tokens: int) -> HoldKv | PullKv | None:
    """Return what the object asks for; None: nothing, so the prompt is prefilled and decoded here.

    Raises BadKvParams for an object that contradicts itself, lacks a key, or names fewer blocks
    than the prompt fills. vLLM 0.32 dies of an assertion on missing or too few block ids and waits
    for ever on a missing host; here every such object is refused and counted instead.
    """
    if not params:
        return None
    flags = [params.get(key) or False for key in ("do_remote_decode", "do_remote_prefill")]
    if not all(isinstance(flag, bool) for flag in flags) or all(flags):
        raise BadKvParams(
            "kv_transfer_params: do_remote_decode and do_remote_prefill must be booleans, "
            "at most one of them true"
        )
    if flags[0]:
        return HoldKv()
    if not flags[1]:
        return None
    try:
        source = msgspec.convert(params, _Source)
    except msgspec.ValidationError as error:
        raise BadKvParams(f"kv_transfer_params: {error}") from error
    blocks_needed = ceil(prompt_tokens / BLOCK_TOKENS)
    if len(source.remote_block_ids) < blocks_needed:
        raise BadKvParams(
            f"kv_transfer_params: {len(source.remote_block_ids)} remote_block_ids for a prompt "
            f"of {blocks_needed} blocks; pass on the prefill answer of this very prompt"
        )
    return PullKv(
        engine_id=source.remote_engine_id,
        request_id=source.remote_request_id,
        host=source.remote_host,
        port=source.remote_port,
        kv_tokens=source.remote_num_tokens or prompt_tokens,
        cached_tokens=min(source.remote_prefill_cached_tokens, prompt_tokens),
    )


def handover_params(
    *,
    engine_id: str,
    request_id: str,
    host: str,
    port: int,
    kv_tokens: int,
    cached_tokens: int,
    first_block: int,
    expires_at_s: float,
) -> dict[str, Any]:
    """Return the object a prefill engine answers with, keys in vLLM's order.

    The block ids are made up: `first_block` only keeps those of two requests apart.
    """
    blocks = ceil(kv_tokens / BLOCK_TOKENS)
    return {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": list(range(first_block, first_block + blocks)),
        "remote_engine_id": engine_id,
        "remote_request_id": request_id,
        "remote_host": host,
        "remote_port": port,
        "tp_size": 1,
        "dcp_size": 1,
        "pp_size": 1,
        "remote_num_tokens": kv_tokens,
        "remote_blocks_expiry_time": expires_at_s,
        "transfer_mode": "pull",
        "remote_prefill_cached_tokens": cached_tokens,
    }
