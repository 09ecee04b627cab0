"""Prefilled KV that waits to be pulled, each under a lease.

A prompt whose KV nobody fetches would block the node for good; vLLM frees it after 30 s
(`kv_lease_duration`), and so does this engine, counted as `kv_expired`. What a router asks it to
free earlier (`wire.release`) is counted as `kv_released`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LEASE_S = 30.0


class Leases:
    """The KV held for other engines, by engine-internal request id.

    release: called with the id of a lease that ran out; it must free the node's KV.
    Bounded by the node's own KV room: every entry occupies at least one of its tokens.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, lease_s: float, release: Callable[[str], None]
    ) -> None:
        self._loop = loop
        self._lease_s = lease_s
        self._release = release
        self._held: dict[str, tuple[int, asyncio.TimerHandle]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    def hold(self, request_id: str, kv_tokens: int) -> float:
        """Start a lease and return the loop time at which it ends."""
        expires_at_s = self._loop.time() + self._lease_s
        timer = self._loop.call_at(expires_at_s, self._expire, request_id)
        self._held[request_id] = (kv_tokens, timer)
        return expires_at_s

    def take(self, request_id: str) -> int | None:
        """End a lease because its KV is being pulled or unwanted; return its tokens, None if none.

        The caller frees the node's KV, when the transfer is over. Taken once: a second pull of the
        same KV finds nothing. (A real engine would serve whatever the blocks hold by then.)
        """
        held = self._held.pop(request_id, None)
        if held is None:
            return None
        kv_tokens, timer = held
        timer.cancel()
        return kv_tokens

    def close(self) -> None:
        for _, timer in self._held.values():
            timer.cancel()
        self._held.clear()

    def _expire(self, request_id: str) -> None:
        del self._held[request_id]
        self._release(request_id)
