"""Limits on the functions called for a request and for a chunk, from socket to socket.

Counts and not times: they are the same on a loaded machine. A limit is about a tenth above what is
counted today; raise one only for something that is worth it, in the commit that does it.
"""

from __future__ import annotations

import json

import pytest

from spillway.router.http_server import ClientConnection
from spillway.router.pool import NodePool

# Of a node that does not report every chunk is timed; the wire here takes two calls for a write.
CALLS_MAX = {"prefill path": 465, "deflected": 290, "chunk": 9}
REQUESTS = 10

HEAD = b"HTTP/1.1 200 OK\r\ndate: now\r\nserver: uvicorn\r\ncontent-type: %b\r\n%b\r\n\r\n"
KV_PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [1, 2, 3, 4],
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
}
CHUNK = b"14\r\ndata: {'text':'a'}\n\n\r\n"
LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def whole(content: dict) -> bytes:
    body = json.dumps(content).encode()
    return HEAD % (b"application/json", b"content-length: %d" % len(body)) + body


PREFILLED = whole({"usage": {"prompt_tokens": 50}, "kv_transfer_params": KV_PARAMS})
ANSWER = whole({"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 5}})
STREAM_HEAD = HEAD % (b"text/event-stream", b"transfer-encoding: chunked")


class Wire:
    """A transport without a socket: what is written to it is handed to `sent`, if anyone."""

    def __init__(self, sent=None) -> None:
        self.sent = sent
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def writelines(self, parts) -> None:
        self.sent(b"".join(parts))

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def abort(self) -> None:
        pass


class Engines:
    """Answers every connection that a pool opens, when told to."""

    def __init__(self, monkeypatch) -> None:
        self.asked: list = []
        self.chunks = 0
        monkeypatch.setattr(NodePool, "_open", lambda pool, conn: self._accept(conn))

    def _accept(self, conn) -> None:
        conn.connection_made(Wire(lambda request: self.asked.append((conn, request))))

    def answer_all(self) -> None:
        while self.asked:
            conn, request = self.asked.pop(0)
            if b'"do_remote_decode":true' in request:
                conn.data_received(PREFILLED)
            elif b'"stream":true' in request:
                conn.data_received(STREAM_HEAD)
                for _ in range(self.chunks):
                    conn.data_received(CHUNK)
                conn.data_received(LAST)
            else:
                conn.data_received(ANSWER)


@pytest.fixture
async def asking(bench, deflect, monkeypatch, tmp_path):
    """Return a function that sends requests through a router with everything on, and counts."""
    from work import work_of

    nodes = [await bench.node(node_id) for node_id in ("p0", "p1", "d0", "d1")]

    async def ask(policy: str, *, stream: bool = False):
        server = await bench.router(
            *nodes,
            policy=deflect() if policy == "deflected" else policy,
            health_interval_s=100.0,
            decision_log_path=str(tmp_path / f"{policy}-{stream}.jsonl"),
        )
        engines, wire = Engines(monkeypatch), Wire()
        for pool in server.shell.pools.values():
            pool._idle.clear()
        client = ClientConnection(server)
        client.connection_made(wire)
        body = json.dumps({"model": "m", "prompt": "x" * 200, "stream": stream, "max_tokens": 9})
        text = body.replace(": ", ":").encode()
        request = (
            b"POST /v1/completions HTTP/1.1\r\nhost: router\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(text), text)
        )

        def serve(chunks: int = 0) -> None:
            engines.chunks = chunks
            for _ in range(REQUESTS):
                client.data_received(request)
                engines.answer_all()

        def calls(chunks: int = 0) -> float:
            wire.written.clear()
            counted = work_of(lambda: serve(chunks)).calls / REQUESTS
            heads = [data for data in wire.written if data.startswith(b"HTTP/1.1 ")]
            assert len(heads) == 5 * REQUESTS  # three warm-ups, and twice for calls and memory
            assert all(head.startswith(b"HTTP/1.1 200 OK") for head in heads)
            assert server.shell.live == {}
            return counted

        return calls

    return ask


async def test_a_request_by_the_prefill_path_calls_no_more_functions_than_its_limit(asking) -> None:
    calls = await asking("headroom")
    assert calls() <= CALLS_MAX["prefill path"]


async def test_a_deflected_request_calls_no_more_functions_than_its_limit(asking) -> None:
    calls = await asking("deflected")
    assert calls() <= CALLS_MAX["deflected"]


async def test_a_chunk_calls_no_more_functions_than_its_limit(asking) -> None:
    calls = await asking("headroom", stream=True)
    few, many = calls(chunks=2), calls(chunks=52)
    assert (many - few) / 50 <= CALLS_MAX["chunk"]
