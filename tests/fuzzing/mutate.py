"""How input is made hostile: bytes flipped, lost, doubled, spliced, and words that hurt."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

WORDS = (
    *(b"\r\n", b"\r", b"\n", b"\0", b" ", b"\t", b":", b";", b",", b"\xff", b"\xc3\x28", b"\x80"),
    *(
        b"0",
        b"-1",
        b"+1",
        b"1e999",
        b"NaN",
        b"0x10",
        b"99999999999999999999",
        b"18446744073709551616",
    ),
    *(
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"\r\n0\r\n\r\n",
        b"chunked",
        b"identity, chunked",
        b"chunked, gzip",
    ),
    *(b"Content-Length: 0\r\n", b"content-length: 7\r\n", b"content-length:+7\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"transfer-encoding : chunked\r\n", b" folded\r\n"),
    *(b"Connection: close\r\n", b"connection: keep-alive, x-slo-class\r\n", b"Upgrade: h2c\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"HTTP/0.9", b"HEAD", b"CONNECT", b"PRI * HTTP/2.0"),
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b"null", b"true", b"\\u0000", b"\\ud800", b"{" * 300),
    *(b"[" * 3000, b"a" * 40_000, b"data: ", b"data: [DONE]\n\n", b'data: {"error":{"code":500}}'),
    *(
        b"kv_transfer_params",
        b"vllm_xargs",
        b"x-spillway-dispatch: a:1\r\n",
        b"Expect: 100-continue\r\n",
    ),
)


def mutated(draw: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Return `data` with one to four things done to it."""
    for _ in range(draw.choice((1, 1, 2, 4))):
        data = _once(draw, data, corpus)
    return data


def _once(draw: Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    to = min(len(data), at + draw.choice((1, 1, 2, 4, 16, 64)))
    match draw.randrange(8):
        case 0:
            return data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :]
        case 1:
            return data[:at] + draw.choice(WORDS) + data[at:]
        case 2:
            return data[:at] + draw.choice(WORDS) + data[to:]
        case 3:
            return data[:at] + data[to:]
        case 4:
            return data[:to] + data[at:]
        case 5:
            other = draw.choice(corpus)
            return data[:at] + other[draw.randrange(len(other) + 1) :]
        case 6:
            return data[:at]
        case _:
            return (
                data[:at] + bytes(draw.randrange(256) for _ in range(draw.randrange(8))) + data[at:]
            )


def pieces(draw: Random, data: bytes) -> list[bytes]:
    """Return the bytes cut up as a network might: mostly whole, at times byte by byte."""
    kind = draw.randrange(40)
    if kind < 24 or not data:
        return [data]
    if kind == 24 and len(data) <= 600:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = sorted(draw.randrange(len(data) + 1) for _ in range(draw.randrange(1, 5)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
