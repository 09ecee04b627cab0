"""Which lines of an engine's response head a client gets, and which the router reads itself.

It is given lines that httptools has found valid, one at a time, and knows nothing of connections.
"""

from __future__ import annotations

LINES_KNOWN_MAX, LINE_KNOWN_BYTES_MAX = 256, 256

# Not passed on: hop-by-hop (RFC 9110, 7.6.1), the framing, which is written anew, what the router
# says itself, and what names a machine.
_UNWANTED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-connection te trailer transfer-encoding "
    b"upgrade content-length x-request-id server via forwarded x-real-ip x-served-by "
    b"x-powered-by x-node x-host x-pod x-worker x-instance".split()
)
_UNWANTED_STARTS = tuple(
    b"x-internal x-backend x-upstream x-forwarded x-envoy x-spillway x-node- x-worker-".split()
)

# What to do with a line: pass it on, leave it out, or pass on or read what has that name.
PASSED, DROPPED, CONTENT_TYPE, LENGTH, CODING, CONNECTION = range(6)


class HeadLines(dict[bytes, tuple[int, bytes]]):
    """What the header lines of one engine mean: what to do with each, and its bytes for that.

    An engine says the same lines in nearly every answer, so that a line (valid, its CRLF taken off)
    is read once and looked up from then on. What is kept is bounded: some lines never come again.
    """

    __slots__ = ("_authority",)

    def __init__(self, authority: bytes) -> None:
        super().__init__()
        self._authority = authority

    def __missing__(self, line: bytes) -> tuple[int, bytes]:
        meaning = self._meaning(line)
        if len(line) <= LINE_KNOWN_BYTES_MAX:
            if len(self) >= LINES_KNOWN_MAX:
                self.clear()
            self[line] = meaning
        return meaning

    def _meaning(self, line: bytes) -> tuple[int, bytes]:
        name, _, said = line.partition(b":")
        key, value = name.lower(), said.strip(b" \t")
        if key == b"content-length":
            return LENGTH, value
        if key == b"transfer-encoding":
            # A tab after `chunked` stays: httptools takes it for a part of the coding's name, and
            # would look for no chunks.
            return CODING, said.lstrip(b" \t").rstrip(b" ").lower()
        if key == b"connection":
            return CONNECTION, value.lower()
        passed = name + b": " + value + b"\r\n"
        if key == b"content-type":
            return CONTENT_TYPE, passed
        if key in _UNWANTED or key.startswith(_UNWANTED_STARTS) or self._authority in value:
            return DROPPED, b""
        return PASSED, passed
