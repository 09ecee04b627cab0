"""Sends one streaming completion over HTTP and feeds what comes back to its `Exchange`.

The only file here that knows the HTTP client; its errors end here as an outcome with a text.
"""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp
import msgspec

from spillway.clock import Clock
from spillway.core.errors import NodeError
from spillway.core.types import Slo
from spillway.loadgen.exchange import Exchange
from spillway.loadgen.sse import EventReader

ERROR_BYTES_MAX = 4_096
REJECTED_STATUSES = (429, 503)  # the server chose not to serve; anything else is a failure
KEEPALIVE_S = 2.0  # shorter than the servers' own, so that no request meets a closing connection


def open_session(*, connect_s: float, silence_s: float) -> aiohttp.ClientSession:
    """Return a session without a limit of its own on connections.

    connect_s, silence_s: bounds on connecting, and on the wait for the next byte.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=silence_s),
    )


def completion_body(model: str, prompt: list[int] | str, output_tokens: int) -> bytes:
    """Return the JSON of a streamed completion of exactly `output_tokens` tokens."""
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


def completion_headers(request_id: str, slo: Slo, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the request's headers; targets go out in milliseconds, as their names say."""
    return {
        **extra,
        "content-type": "application/json",
        "x-request-id": request_id,
        "x-slo-ttft-ms": f"{slo.ttft_s * 1e3:g}",
        "x-slo-tbt-ms": f"{slo.tbt_s * 1e3:g}",
    }


async def complete(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    exchange: Exchange,
    clock: Clock,
) -> None:
    """Post `body` to `url` and measure the stream; the exchange has an outcome afterwards.

    Raises nothing of the network; asyncio.CancelledError passes through, without an outcome.
    """
    exchange.sent_s = clock.now_s()
    try:
        async with session.post(url, data=body, headers=headers) as response:
            exchange.route = response.headers.get("x-spillway-route", "")
            exchange.reason = response.headers.get("x-spillway-reason", "")
            if response.status != 200:
                await _read_refusal(response, exchange, clock)
                return
            events = EventReader()
            async for received in response.content.iter_any():
                now_s = clock.now_s()
                for data in events.feed(received):
                    exchange.take(data, now_s)
        exchange.end("failed", clock.now_s(), "the stream ended without [DONE]")
    except NodeError as error:
        exchange.end("failed", clock.now_s(), str(error))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        exchange.end("failed", clock.now_s(), f"{type(error).__name__}: {error}")


async def _read_refusal(response: aiohttp.ClientResponse, exchange: Exchange, clock: Clock) -> None:
    said = (await response.content.read(ERROR_BYTES_MAX)).decode(errors="replace")
    outcome = "rejected" if response.status in REJECTED_STATUSES else "failed"
    exchange.end(outcome, clock.now_s(), f"HTTP {response.status}: {said.strip()}")
