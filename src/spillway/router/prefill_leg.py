"""The first leg of a disaggregated request: a prefill node runs the prompt, one token comes back.

What counts in its answer is `kv_transfer_params`, which says where the KV waits; it goes to the
decode leg as it came. Source: the two-step protocol of vLLM's NIXL connector.
"""

from __future__ import annotations

from typing import Protocol

from spillway.core.errors import NodeError
from spillway.router.fetch import Fetch
from spillway.router.http_client import Fault, ResponseHead
from spillway.router.relay import Exchange
from spillway.wire.kvparams import check_handover
from spillway.wire.openai import read_prefill_answer


class PrefillOwner(Protocol):
    """Who is told how a prefill leg ended."""

    def prefilled(self, exchange: Exchange, kv_params: bytes, prompt_tokens: int) -> None: ...

    def refused(self, exchange: Exchange, status: int) -> None: ...

    def broke(self, exchange: Exchange, fault: Fault) -> None: ...

    def finished(self, exchange: Exchange, status: int) -> None: ...


class PrefillLeg(Fetch):
    """Collects the answer of one prefill leg and reports what it means."""

    __slots__ = ("_exchange", "_kv_block_tokens", "_owner")

    def __init__(
        self, owner: PrefillOwner, exchange: Exchange, bytes_max: int, kv_block_tokens: int = 0
    ) -> None:
        super().__init__(bytes_max)
        self._kv_block_tokens = kv_block_tokens
        self._owner = owner
        self._exchange = exchange

    def done(self, head: ResponseHead, content: bytes) -> None:
        exchange = self._exchange
        exchange.leg = None
        if head.is_failure:
            self._owner.refused(exchange, head.status)
        elif head.status >= 400:  # the client's own fault: no other node would say anything else
            self._owner.finished(exchange, head.status)
            exchange.answer_whole(head, content)
        else:
            try:
                kv_params, prompt_tokens = read_prefill_answer(content)
                check_handover(kv_params, prompt_tokens, self._kv_block_tokens)
            except NodeError:
                self._owner.broke(exchange, Fault.NO_KV_PARAMS)
            else:
                self._owner.prefilled(exchange, kv_params, prompt_tokens)

    def failed(self, fault: Fault) -> None:
        self._exchange.leg = None
        self._owner.broke(self._exchange, fault)
