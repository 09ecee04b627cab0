"""The front towards clients: what arrives on a client's connection, against engines that work."""

from __future__ import annotations

import json
from random import Random

from fuzzing.answers import answers
from fuzzing.mutate import mutated, pieces
from fuzzing.rig import ClientEnd, Fault, Rig, chunk
from spillway.core.invariants import check_dispatcher
from spillway.core.policies import build_policy

POLICIES = ("headroom", "least-loaded", "round-robin", "threshold")
DESERVED = (505,)  # a version of HTTP that is not spoken here
PAGES = ("/health", "/v1/models", "/metrics", "/debug/decisions", "/dashboard/data", "/dashboard")
BODIES: tuple[dict[str, object], ...] = (
    {"model": "m", "prompt": "hello there", "max_tokens": 5, "stream": True},
    {"model": "m", "prompt": [1, 2, 3], "max_tokens": 5},
    {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    {"model": "m", "prompt": "x" * 5000, "max_tokens": 1, "vllm_xargs": {"a": 1}, "n": 1},
    {"model": "m", "prompt": "é\n\u0000", "stream_options": {"include_usage": True}},
)
LINES = (
    *("x-slo-ttft-ms: 500", "x-slo-tbt-ms: 1e3", "x-slo-class: batch", "x-request-id: one"),
    *("x-request-timeout-ms: 3500", "Authorization: Bearer k", "Accept-Encoding: gzip"),
    *("Connection: keep-alive", "TE: trailers", "traceparent: 00-1-2-03", "X-Y:", "Cookie: a=b"),
    *("Expect: 100-continue", "Connection: X-Y, keep-alive", "Via: 1.1 a"),
)
# As common clients send them.
RECORDED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: curl/8.5.0\r\n"
    b"Accept: */*\r\nContent-Type: application/json\r\nContent-Length: 48\r\n\r\n"
    b'{"model":"m","prompt":"hi","max_tokens":3,"n":1}',
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nAccept-Encoding: gzip, deflate, br\r\n"
    b"Connection: keep-alive\r\nUser-Agent: AsyncOpenAI/Python 1.99\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
    + chunk(b'{"model":"m","messages":[{"role":"user","content":"')
    + chunk(b'hi"}],"stream":true}')
    + b"0\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: r\r\nAccept: application/json\r\n\r\n",
    b"GET /health HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: r\r\n\r\n",
)


def valid(draw: Random) -> tuple[bytes, int]:
    """Return a request that a client may send, and the status that it deserves."""
    if draw.random() < 0.2:
        path = draw.choice(PAGES)
        return f"GET {path} HTTP/1.1\r\nhost: r\r\n\r\n".encode(), 200
    fields = draw.choice(BODIES)
    body = json.dumps(fields, ensure_ascii=draw.random() < 0.5).encode()
    path = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    lines = [f"POST {path} HTTP/1.1", "Host: router", *draw.sample(LINES, draw.randrange(4))]
    if draw.random() < 0.7:
        lines.append(f"Content-Length: {len(body)}")
    else:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(b"%X;a=b\r\n%b\r\n" % (len(one), one) for one in pieces(draw, body) if one)
        body += b"0\r\n" + draw.choice((b"", b"host: other\r\nX-Trailer: 1\r\n")) + b"\r\n"
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body, 200


class ClientSurface:
    """Requests in a row on one connection, some as they should be, most not."""

    name = "client"

    def __init__(self, seed: int) -> None:
        policy = build_policy(POLICIES[seed % len(POLICIES)])
        self.rig = Rig(policy, body_bytes_max=20_000, head_bytes_max=4096)

    def __enter__(self) -> ClientSurface:
        self.rig.__enter__()
        return self

    def __exit__(self, *_) -> None:
        check_dispatcher(self.rig.server.shell.dispatcher)
        self.rig.__exit__()

    def one(self, draw: Random) -> list[str]:
        rig = self.rig
        made = [valid(draw) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
        expected: list[int] | None = [status for _, status in made]
        data = b"".join(part for part, _ in made)
        if draw.random() < 0.8:
            expected = None
            if draw.random() < 0.2:
                data = draw.choice(RECORDED)
            data = mutated(draw, data, [*RECORDED, data])
        client = ClientEnd(rig)
        for piece in pieces(draw, data):
            client.transport.deliver(piece)
            if expected is None and draw.random() < 0.05:
                self._disturb(draw, client)
            if draw.random() < 0.5:
                rig.loop.run()
        rig.loop.run()
        if expected is None and draw.random() < 0.3:
            client.transport.deliver_eof()
        rig.settle()
        if not client.transport.is_closing():
            raise Fault("the connection is still open")
        return self._check(client, expected, data)

    def _disturb(self, draw: Random, client: ClientEnd) -> None:
        match draw.randrange(4):
            case 0:
                client.transport.lose(ConnectionResetError())
                client.left = True
            case 1:
                client.pause()
            case 2:
                client.resume()
            case _:
                self.rig.loop.advance(draw.choice((0.01, 1.0, 6.0)))

    def _check(self, client: ClientEnd, expected: list[int] | None, data: bytes) -> list[str]:
        got = answers(bytes(client.got), is_closed=True)
        for answer in got:
            if answer.status >= 500 and answer.status not in DESERVED:
                raise Fault(f"{answer.status}: {answer.content[:300]!r}")
        broken = [one.status for one in got if not one.is_whole]
        if broken and not (client.left or client.is_aborted or b"HEAD" in data):
            raise Fault(f"answers {broken} were not ended")
        if expected is not None and [one.status for one in got] != expected:
            raise Fault(f"answered {[one.status for one in got]}, deserved {expected}")
        self.rig.check_empty()
        return [str(answer.status) for answer in got] or ["none"]
