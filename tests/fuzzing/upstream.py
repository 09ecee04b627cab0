"""The front towards engines: what they answer, to a client that asks as it should."""

from __future__ import annotations

import json
from random import Random

from fuzzing.answers import Answer, answers
from fuzzing.mutate import mutated, pieces
from fuzzing.rig import (
    DONE,
    EVENT,
    PREFILLED,
    SSE_HEAD,
    STREAM,
    ClientEnd,
    EngineEnd,
    Fault,
    Rig,
    answer,
    chunk,
)
from spillway.core.invariants import check_dispatcher
from spillway.core.policies import build_policy

CONTENT = EVENT + EVENT + DONE
WHOLE = b'{"choices":[{"text":"t"}],"usage":{"completion_tokens":1}}'
TYPE = b"content-type: text/event-stream\r\n"
EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
FAILED = b'data: {"error":{"message":"KV load","code":500}}\n\n'
# An answer as an engine may give it: status for the client, content, and its bytes; the last ones
# end with the connection.
EITHER = 0  # moved if the failure comes in one read, passed on if not
PREFILLS: tuple[tuple[int, bytes], ...] = (
    (200, answer(200, PREFILLED)),
    (200, EARLY + answer(200, PREFILLED)),
    (
        200,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        + chunk(PREFILLED[:40])
        + chunk(PREFILLED[40:])
        + b"0\r\n\r\n",
    ),
    (400, answer(400, b'{"error":{"message":"too long"}}')),
    (502, answer(500, b"oops")),
    (503, answer(503, b"{}")),
    (502, answer(200, b'{"kv_transfer_params":null}')),
)
DECODES: tuple[tuple[int, bytes, bytes], ...] = (
    (200, CONTENT, STREAM),
    (200, CONTENT, EARLY + STREAM),
    (200, CONTENT, SSE_HEAD + chunk(CONTENT) + b"0;x=y\r\ntrailer: 1\r\n\r\n"),
    (200, WHOLE, answer(200, WHOLE)),
    (422, b"{}", answer(422, b"{}")),
    (204, b"", b"HTTP/1.1 204 No Content\r\nx-node-name: secret\r\n\r\n"),
    (502, b"", answer(500, b"Traceback")),
    (503, b"", answer(503, b"{}")),
    (502, b"", answer(302, b"")),
    (EITHER, b"", SSE_HEAD + chunk(FAILED) + chunk(DONE) + b"0\r\n\r\n"),
)
CLOSING: tuple[tuple[int, bytes, bytes], ...] = (
    (200, CONTENT, b"HTTP/1.1 200 OK\r\n" + TYPE + b"\r\n" + CONTENT),
    (200, CONTENT, b"HTTP/1.0 200 OK\r\nconnection: close\r\n" + TYPE + b"\r\n" + CONTENT),
    (200, WHOLE, b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE),
)
PAGES = (
    answer(200, b'{"object":"list","data":[{"id":"m"},{"id":"other","object":"model"}]}'),
    answer(200, b'{"version":"0.32.0"}'),
    answer(
        200,
        b'{"vllm_config":{"scheduler_config":{"max_num_batched_tokens":256,"max_num_seqs":8},'
        b'"kv_transfer_config":{"kv_connector":"NixlConnector","kv_role":"kv_consumer"}}}',
    ),
)
CORPUS = [*(one[-1] for one in (*PREFILLS, *DECODES, *CLOSING)), *PAGES]
ASKED_S = 8.0
PATIENCE_S = 200.0  # three tries of two legs that fall silent, each noticed by the second sweep


class UpstreamSurface:
    """One answer of an engine per input, to a prefill leg, a decode leg or the router itself."""

    name = "upstream"

    def __init__(self, seed: int) -> None:
        self.rig = Rig(build_policy("least-loaded"), answer_bytes_max=100_000)
        self._script: tuple[list[bytes], str] = ([], "")
        self._hostile = 0

    def __enter__(self) -> UpstreamSurface:
        self.rig.__enter__()
        return self

    def __exit__(self, *_) -> None:
        check_dispatcher(self.rig.server.shell.dispatcher)
        self.rig.__exit__()

    def one(self, draw: Random) -> list[str]:
        if draw.random() < 0.15:
            self._misinform(draw)
            return ["page", *self._ask_well(draw)]
        is_prefill = draw.random() < 0.4
        status, content, data, fate = self._answer(draw, is_prefill)
        is_valid = draw.random() < 0.2
        if not is_valid:
            data = mutated(draw, data, CORPUS)
            fate = draw.choice(("keep", "keep", "keep", "eof", "reset", "more"))
        self._hostile = 100 if is_valid else draw.choice((1, 1, 2, 100))
        for engine in self.rig.engines.values():
            if (engine.role == "prefill") is is_prefill:
                engine.on_post = lambda end, _: self._say(draw, end, data, fate)
        client, got = self._talk(draw)
        for engine in self.rig.engines.values():
            engine.on_post = None
        if is_valid:
            self._compare(got, status, content, is_prefill)
        if not client.transport.is_closing():  # it must not have been led astray
            before = len(client.got)
            self._send(draw, client)
            self.rig.loop.run()
            again = answers(bytes(client.got[before:]), is_closed=False)
            if [(one.status, one.is_whole) for one in again] != [(200, True)]:
                raise Fault(f"the next request on the connection was answered {again}")
        self._leave(client)
        return [str(one.status) if one.is_whole else "cut" for one in got] or ["none"]

    def _answer(self, draw: Random, is_prefill: bool) -> tuple[int, bytes, bytes, str]:
        if is_prefill:
            status, data = draw.choice(PREFILLS)
            return status, b"", data, "keep"
        if draw.random() < 0.8:
            return (*draw.choice(DECODES), "keep")
        return (*draw.choice(CLOSING), "eof")

    def _say(self, draw: Random, end: EngineEnd, data: bytes, fate: str) -> None:
        """Say the hostile answer, the first times; well again after that."""
        if self._hostile <= 0:
            end.send(end.engine.good_answer({"stream": True}))
            return
        self._hostile -= 1
        for piece in pieces(draw, data):
            end.send(piece)
        if fate == "eof":
            end.close()
        elif fate == "reset":
            end.reset()
        elif fate == "more":
            self.rig.loop.call_later(1.0, end.send, draw.choice(CORPUS))

    def _send(self, draw: Random, client: ClientEnd, version: str = "1.1") -> None:
        body = json.dumps({"model": "m", "prompt": "hello", "stream": draw.random() < 0.7})
        head = (
            f"POST /v1/completions HTTP/{version}\r\nhost: r\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        client.transport.deliver((head + body).encode())

    def _talk(self, draw: Random) -> tuple[ClientEnd, list[Answer]]:
        """Ask once and wait for the end of the answer, however it comes."""
        client = ClientEnd(self.rig)
        loop = self.rig.loop
        self._send(draw, client, draw.choice(("1.1", "1.1", "1.1", "1.0")))
        loop.run()
        if draw.random() < 0.1:
            client.pause()
            loop.advance(1.0)
            client.resume()
        waited_s = 0.0
        while self.rig.server.shell.live:
            loop.advance(ASKED_S)
            waited_s += ASKED_S
            if waited_s > PATIENCE_S:
                raise Fault("the request does not end")
        got = answers(bytes(client.got), is_closed=client.transport.is_closing())
        if len(got) > 1:
            raise Fault(f"one request, answers {got}")
        if not client.transport.is_closing() and not (got and got[0].is_whole):
            raise Fault("the answer does not end, and the connection is still open")
        return client, got

    def _compare(self, got: list[Answer], status: int, content: bytes, is_prefill: bool) -> None:
        answer = got[0]
        # Without its prefill node a request may be deflected.
        if status == EITHER or (is_prefill and status >= 500 and answer.status == 200):
            return
        if status >= 500:
            status = answer.status if answer.status >= 500 else status
        wanted = content if status < 500 and content else answer.content
        if answer.status != status or not answer.is_whole or answer.content != wanted:
            raise Fault(f"answered {answer}, deserved {status} {content!r}")

    def _leave(self, client: ClientEnd) -> None:
        client.transport.lose(None)
        self.rig.loop.run()
        self.rig.loop.advance(2.0)
        self.rig.check_empty()

    # --- the router's own questions -----------------------------------------------------------

    def _misinform(self, draw: Random) -> None:
        """Answer what the router asks of health, models and settings with nonsense."""
        data = mutated(draw, draw.choice(PAGES), CORPUS)
        fate = draw.choice(("keep", "eof", "reset"))

        def say(end: EngineEnd, target: bytes) -> bool:
            if target.startswith(b"/spillway/reports"):
                return False
            for piece in pieces(draw, data):
                end.send(piece)
            if fate == "eof":
                end.close()
            elif fate == "reset":
                end.reset()
            return True

        server = self.rig.server
        for engine in self.rig.engines.values():
            engine.on_page = say
        server.health.check()
        for name in self.rig.engines:
            server.intake.reopen(name)
        self.rig.loop.run()
        self.rig.loop.advance(20.0)
        for engine in self.rig.engines.values():
            engine.on_page = None
        server.health.check()
        self.rig.loop.advance(11.0)
        server.health.check()
        self.rig.loop.run()

    def _ask_well(self, draw: Random) -> list[str]:
        client, got = self._talk(draw)
        self._leave(client)
        if [one.status for one in got] != [200]:
            raise Fault(f"engines answer well again, and the client gets {got}")
        return ["200"]
