"""Whether an event stream begins with the engine's own failure, however its bytes are cut.

vLLM says in the stream that it could not load the KV: its 200 is sent by then. While nothing else
has been said the request can still be moved, so a stream is held back until its first event is
complete: an engine that fails before that has cost the client nothing.
"""

from __future__ import annotations

import re

from spillway.router.fetch import Unchunker

HELD_BYTES_MAX = 8192  # of an event that does not end; such a stream is passed on
ERROR_EVENT, NEWLINE = b'data: {"error":', ord("\n")
SERVER_FAULT = re.compile(rb'"code": ?"?5\d\d\b')
EVENT_END = re.compile(rb"\n\n|\r\n\r\n")


def is_failed_start(raw: bytes, *, is_chunked: bool, is_all: bool = False) -> bool | None:
    """Return whether the first bytes of an event stream hold the engine's own failure.

    None: that cannot be told until more has come.
    is_chunked: whether chunk framing is among the bytes.  is_all: nothing follows them.
    A raw line break cannot stand inside an event's JSON, so no text of a model looks like this.
    """
    start = raw.find(b"\r\n") + 2 if is_chunked else 0
    begun = raw[start : start + len(ERROR_EVENT)]
    content, end = raw, len(raw)
    is_cut = len(begun) < len(ERROR_EVENT) or b"\r" in begun or not EVENT_END.search(raw)
    if is_cut or begun == ERROR_EVENT:  # most first reads hold a token, and are not looked into
        content = Unchunker().feed(raw) if is_chunked else raw
        ended = EVENT_END.search(content)
        if ended is None and not is_all:
            return None if len(raw) <= HELD_BYTES_MAX else False
        end = len(content) if ended is None else ended.end()
    at = content.find(ERROR_EVENT)
    is_event = at == 0 or (at > 0 and content[at - 1] == NEWLINE)
    return is_event and SERVER_FAULT.search(content, at, end) is not None
