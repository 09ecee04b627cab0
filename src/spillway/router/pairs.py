"""Moves one short prompt over every pair of nodes: the only proof that they can hand KV over.

The first contact of a pair costs seconds (handshake, memory registration), so this also warms it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from spillway.core.errors import NodeError
from spillway.core.types import Role
from spillway.router.dial import NodeAnswers, key_lines
from spillway.router.fetch import Fetch
from spillway.router.http_client import Fault, ResponseHead
from spillway.router.pool import NodePool
from spillway.router.settings import RouterSettings
from spillway.wire.checks import Finding, Level
from spillway.wire.config import Node
from spillway.wire.kvparams import check_handover
from spillway.wire.openai import (
    COMPLETIONS_PATH,
    decode_body,
    parse_body,
    prefill_body,
    read_prefill_answer,
)

PAIR_S = 120.0  # a first contact took up to 106 s on two cores with four nodes
PROMPT_TOKENS = 40
SAID_BYTES_MAX = 200
_IDS = range(300, 300 + PROMPT_TOKENS)  # text in any vocabulary, and more than one KV block


async def try_every_pair(answers: Sequence[NodeAnswers], settings: RouterSettings) -> list[Finding]:
    """Return what went wrong, pair by pair; nodes that cannot be used are left out.

    One pair at a time, so that a fault is that of its pair.
    """
    usable = [one for one in answers if not one.fault and one.models]
    findings = []
    for prefill in (one for one in usable if one.node.spec.role is Role.PREFILL):
        for decode in (one for one in usable if one.node.spec.role is Role.DECODE):
            common = [model for model in prefill.models if model in decode.models]
            if not common:
                continue  # found already
            try:
                await _two_step(prefill.node, decode.node, common[0], settings)
            except NodeError as error:
                pair = f"{prefill.node.spec.node_id} to {decode.node.spec.node_id}"
                findings.append(
                    Finding(
                        level=Level.ERROR,
                        node_id=decode.node.spec.node_id,
                        text=f"no KV came over from {pair}: {error}",
                        remedy="the engines' logs say more; "
                        "is VLLM_NIXL_SIDE_CHANNEL_HOST reachable from the other node?",
                    )
                )
    return findings


async def _two_step(prefill: Node, decode: Node, model: str, settings: RouterSettings) -> None:
    """Run one prompt by the prefill path. Raises NodeError saying which leg failed, and how."""
    body = msgspec.json.encode(
        {"model": model, "prompt": list(_IDS), "max_tokens": 1, "temperature": 0}
    )
    first = prefill_body(parse_body(body, is_chat=False).fields)
    answer = await _post(prefill, first, settings)
    kv_params, prompt_tokens = read_prefill_answer(answer)
    check_handover(kv_params, prompt_tokens, settings.kv_block_tokens)
    await _post(decode, decode_body(body, kv_params), settings)


async def _post(node: Node, body: bytes, settings: RouterSettings) -> bytes:
    node_id = node.spec.node_id
    pool = NodePool(node_id, node.url, settings)
    whole = _Whole(settings.answer_bytes_max)
    lines = key_lines(settings) + b"content-type: application/json\r\n"
    whole.leg = pool.post(whole, COMPLETIONS_PATH.encode(), lines, body, may_resend=False)
    try:
        async with asyncio.timeout(PAIR_S):
            status, content = await whole.answer
    except TimeoutError:
        raise NodeError(f"{node_id} did not answer in {PAIR_S:g} s") from None
    finally:
        if whole.leg is not None:
            whole.leg.abort()
        pool.close()
    if status != 200:
        said = content[:SAID_BYTES_MAX].decode(errors="replace")
        raise NodeError(f"{node_id} answers {status or said}: {said}")
    return content


class _Whole(Fetch):
    """Waits for one whole answer: (status, content), or (0, the fault)."""

    __slots__ = ("answer",)

    def __init__(self, bytes_max: int) -> None:
        super().__init__(bytes_max)
        self.answer: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def done(self, head: ResponseHead, content: bytes) -> None:
        self._end(head.status, content)

    def failed(self, fault: Fault) -> None:
        self._end(0, fault.value.encode())

    def _end(self, status: int, content: bytes) -> None:
        self.leg = None
        if not self.answer.done():
            self.answer.set_result((status, content))
