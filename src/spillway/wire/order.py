"""What rides on a request to an engine whose headers the scheduler never sees.

In vLLM only `vllm_xargs` of the body reaches the scheduler. Under its key `spillway` the router
puts one scalar, `<router id>:<dispatch id>:<target in ms>`, because old releases take nothing else
there: who sent the request, which dispatch it is (so that reports can say what they include), and
the time between tokens its stream asks to be protected with.
"""

from __future__ import annotations

from collections import Counter
from math import isfinite
from typing import NamedTuple

from spillway.core.errors import RequestError

XARGS_KEY = "spillway"
ROUTER_ID_CHARS_MAX = 128
DISPATCH_DIGITS_MAX = 18
ROUTERS_MAX = 64


class EngineOrder(NamedTuple):
    """The router's word to the scheduler. tbt_s: None leaves the target to the engine's default."""

    router_id: str
    dispatch_id: int
    tbt_s: float | None = None


def encode_order(order: EngineOrder) -> str:
    """Return the order as the scalar that `decode_order` reads."""
    target = "" if order.tbt_s is None else f"{order.tbt_s * 1e3:.10g}"
    return f"{order.router_id}:{order.dispatch_id}:{target}"


def decode_order(text: object) -> EngineOrder:
    """Return the order of a scalar. Raises RequestError saying what it should look like."""
    parts = text.rsplit(":", 2) if isinstance(text, str) else []
    if len(parts) == 3:
        router_id, number, target = parts
        is_count = number.isascii() and number.isdigit() and len(number) <= DISPATCH_DIGITS_MAX
        if is_count and 0 < len(router_id) <= ROUTER_ID_CHARS_MAX:
            if not target:
                return EngineOrder(router_id, int(number))
            tbt_s = _seconds(target)
            if tbt_s is not None:
                return EngineOrder(router_id, int(number), tbt_s)
    raise RequestError(
        f"vllm_xargs.{XARGS_KEY} is {str(text)[:80]!r};"
        " it must be <router id>:<dispatch id>:<target in ms, or nothing>",
        param="vllm_xargs",
    )


def _seconds(target_ms: str) -> float | None:
    try:
        seconds = float(target_ms) / 1e3
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds > 0 else None


class DispatchesSeen:
    """The highest dispatch id received from each router, for the routers heard from last."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._highest: dict[str, int] = {}
        self._dropped = dropped

    def note(self, router_id: str, dispatch_id: int) -> None:
        """Remember one dispatch. O(1); forgets the router unheard for longest beyond 64."""
        # Reinserted, so that the dictionary's order is the order of last hearing.
        highest = max(dispatch_id, self._highest.pop(router_id, 0))
        self._highest[router_id] = highest
        if len(self._highest) > ROUTERS_MAX:
            del self._highest[next(iter(self._highest))]
            self._dropped["router_forgotten"] += 1

    def by_router(self) -> dict[str, int]:
        """Return a copy: router id to its highest dispatch id."""
        return dict(self._highest)
