"""The `kv_transfer_params` with which a prefill node hands KV over, checked before they are used.

A decode engine believes them blindly. vLLM 0.32 dies of an assertion when block ids are missing or
too few for the prompt, and waits for ever on a missing host. So what a prefill node answers is
looked at once, here, and never sent on when it cannot work. Keys the router does not know pass.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, NamedTuple

import msgspec

from spillway.core.errors import NodeError

Name = Annotated[str, msgspec.Meta(min_length=1)]
BlockId = Annotated[int, msgspec.Meta(ge=0)]


class _Handover(msgspec.Struct):
    """What a decode node needs to fetch KV by NIXL's pull mode, vLLM 0.18 to 0.33.

    remote_block_ids: one list, or one for each group of layers that shares a cache.
    """

    do_remote_prefill: bool
    remote_engine_id: Name
    remote_request_id: Name
    remote_block_ids: list[BlockId | list[BlockId]]
    remote_host: Name
    remote_port: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    tp_size: Annotated[int, msgspec.Meta(ge=1)]
    remote_num_tokens: int | None = None


class HeldKv(NamedTuple):
    """The names that a prefill node knows the KV by which it holds for others."""

    engine_id: str
    request_id: str


_DECODER = msgspec.json.Decoder(_Handover)


def check_handover(kv_params: bytes, prompt_tokens: int, kv_block_tokens: int = 0) -> None:
    """Raise NodeError unless a decode node can use the object for a prompt of this length.

    prompt_tokens: 0 when the answer did not say.  kv_block_tokens: the engines' block size; 0 is
    not known, and then the number of blocks is only checked to be above 0.
    """
    try:
        handover = _DECODER.decode(kv_params)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError(f"kv_transfer_params of the prefill answer: {error}") from None
    if not handover.do_remote_prefill:
        raise NodeError("kv_transfer_params of the prefill answer: do_remote_prefill is false")
    ids = handover.remote_block_ids
    # The first tells which it is: a long prompt has thousands of ids, and each look is Python.
    grouped = bool(ids) and isinstance(ids[0], list)
    blocks = max(len(one) for one in ids if isinstance(one, list)) if grouped else len(ids)
    needed = ceil(prompt_tokens / kv_block_tokens) if kv_block_tokens else 1
    if blocks < max(1, needed):
        raise NodeError(
            f"kv_transfer_params of the prefill answer: {blocks} block ids, {needed} are needed"
        )
    held = handover.remote_num_tokens
    if held is not None and held < prompt_tokens:
        raise NodeError(
            f"kv_transfer_params of the prefill answer: KV of {held} tokens for a prompt of "
            f"{prompt_tokens}"
        )


def held_kv(kv_params: bytes) -> HeldKv:
    """Return whose KV a handover is about, one that `check_handover` has passed."""
    handover = _DECODER.decode(kv_params)
    return HeldKv(handover.remote_engine_id, handover.remote_request_id)
