"""A client that takes nothing on trust: reads what the router wrote as the standard says."""

from __future__ import annotations

import re
from typing import NamedTuple

from fuzzing.memory import Fault

_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [\x20-\x7e\x80-\xff]*")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SIZE = re.compile(rb"([0-9a-fA-F]{1,15})([ \t]*;[^\r\n]*)?")


class Answer(NamedTuple):
    """One answer. is_whole: its end was told, and came."""

    status: int
    content: bytes
    is_whole: bool


def answers(got: bytes, *, is_closed: bool) -> list[Answer]:
    """Return the answers on a connection, interim ones left out. Raises Fault.

    is_closed: no more will come, which ends an answer without a length.
    """
    found: list[Answer] = []
    while got:
        head, end, rest = got.partition(b"\r\n\r\n")
        if not end:
            raise Fault(f"half a head: {got[:200]!r}")
        lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(lines[0])
        if status is None:
            raise Fault(f"no status line: {lines[0][:200]!r}")
        number = int(status[1])
        headers = _headers(lines[1:])
        if number < 200:
            got = rest
            continue
        answer, got = _body(number, headers, rest, is_closed)
        found.append(answer)
        if b"content-length" in headers:
            got = got.lstrip(b"\r\n")  # empty lines after a body that came in several reads
        if not answer.is_whole:
            break
    return found


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name) or b"\r" in value or b"\n" in value:
            raise Fault(f"no header line: {line[:200]!r}")
        key = name.lower()
        if key in (b"content-length", b"transfer-encoding") and key in headers:
            raise Fault(f"{key!r} twice")
        headers[key] = value.strip()
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise Fault("two framings")
    return headers


def _body(
    number: int, headers: dict[bytes, bytes], rest: bytes, is_closed: bool
) -> tuple[Answer, bytes]:
    if number in (204, 304):
        return Answer(number, b"", True), rest
    if b"transfer-encoding" in headers:
        return _chunks(number, rest)
    if b"content-length" not in headers:
        return Answer(number, rest, is_closed), b""
    text = headers[b"content-length"]
    if not text.isdigit():
        raise Fault(f"no length: {text!r}")
    length = int(text)
    return Answer(number, rest[:length], len(rest) >= length), rest[length:]


def _chunks(number: int, rest: bytes) -> tuple[Answer, bytes]:
    content: list[bytes] = []
    while True:
        line, end, after = rest.partition(b"\r\n")
        if not end:
            return Answer(number, b"".join(content), False), b""
        size = _SIZE.fullmatch(line)
        if size is None:
            raise Fault(f"no chunk size: {line[:80]!r}")
        length = int(size[1], 16)
        if not length:
            return _trailers(number, b"".join(content), after)
        if len(after) < length + 2:
            return Answer(number, b"".join([*content, after[:length]]), False), b""
        if after[length : length + 2] != b"\r\n":
            raise Fault(f"a chunk that does not end: {after[length : length + 8]!r}")
        content.append(after[:length])
        rest = after[length + 2 :]


def _trailers(number: int, content: bytes, rest: bytes) -> tuple[Answer, bytes]:
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return Answer(number, content, False), b""
        if not line:
            return Answer(number, content, True), rest
