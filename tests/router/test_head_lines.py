"""What each line of an engine's response head means, and how much of that is remembered."""

from __future__ import annotations

import pytest

from spillway.router.head_lines import (
    CODING,
    CONNECTION,
    CONTENT_TYPE,
    DROPPED,
    LENGTH,
    LINE_KNOWN_BYTES_MAX,
    LINES_KNOWN_MAX,
    PASSED,
    HeadLines,
)


@pytest.mark.parametrize(
    ("line", "kind", "value"),
    [
        (b"content-length: 12", LENGTH, b"12"),
        (b"Content-Length:12", LENGTH, b"12"),
        (b"Transfer-Encoding: chunked", CODING, b"chunked"),
        (b"transfer-encoding:\tChunked ", CODING, b"chunked"),
        (b"transfer-encoding: chunked \t", CODING, b"chunked \t"),
        (b"Connection: Keep-Alive", CONNECTION, b"keep-alive"),
        (b"content-type: text/event-stream", CONTENT_TYPE, b"content-type: text/event-stream\r\n"),
        (b"X-Odd:  a: b \t", PASSED, b"X-Odd: a: b\r\n"),
        (b"x-empty:", PASSED, b"x-empty: \r\n"),
        (b"Server: uvicorn", DROPPED, b""),
        (b"X-Worker-7: a", DROPPED, b""),
        (b"location: http://10.0.0.1:8000/", DROPPED, b""),
    ],
)
def test_a_line_means_the_same_the_first_time_and_later(line, kind, value) -> None:
    lines = HeadLines(b"10.0.0.1:8000")

    assert lines[line] == (kind, value)
    assert lines[line] == (kind, value)
    assert line in lines


def test_what_is_remembered_is_bounded_in_lines_and_in_their_size() -> None:
    lines = HeadLines(b"engine:1")

    for number in range(5 * LINES_KNOWN_MAX):
        assert lines[b"x-request: %d" % number][0] == PASSED
        assert len(lines) <= LINES_KNOWN_MAX
    long = b"x-long: " + b"a" * LINE_KNOWN_BYTES_MAX
    assert lines[long][0] == PASSED
    assert long not in lines
