"""How a router has prefilled KV freed that no decode node was ever told of.

`POST /spillway/release?engine=E&request=R`, without a body, where the prefill node's reports are
read; E and R are `remote_engine_id` and `remote_request_id` of the handover. 202 says that the KV,
if it still waits there, goes before one of the node's next steps; 503 that too many wait to go. KV
that is unknown, was fetched or went with its lease is no error. Only nodes whose reports say
`releases` are asked, and only by the router that got the handover, while it has sent it to nobody:
whoever was sent it may be fetching.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlencode

from spillway.core.errors import RequestError
from spillway.wire.kvparams import HeldKv

RELEASE_PATH = "/spillway/release"
STATUS_TAKEN, STATUS_FULL = 202, 503
NAME_CHARS_MAX = 512  # two of them, escaped, fit a request head


def release_target(held: HeldKv) -> str | None:
    """Return the request target that frees KV; None when its names are too long to be sent."""
    if max(len(held.engine_id), len(held.request_id)) > NAME_CHARS_MAX:
        return None
    query = {"engine": held.engine_id, "request": held.request_id}
    return f"{RELEASE_PATH}?{urlencode(query, errors='replace')}"


def read_release(query: str) -> HeldKv:
    """Return the KV that a request target's query names. Raises RequestError for what is wrong."""
    given = parse_qs(query, max_num_fields=16)
    return HeldKv(_name(given, "engine"), _name(given, "request"))


def _name(given: dict[str, list[str]], name: str) -> str:
    text = given.get(name, [""])[-1]
    if not 0 < len(text) <= NAME_CHARS_MAX:
        raise RequestError(f"{name} must be a name of 1 to {NAME_CHARS_MAX} characters", param=name)
    return text
