"""The intake of reports: what a node says of itself, in numbers that no node should say."""

from __future__ import annotations

import json
from random import Random

from fuzzing.answers import answers
from fuzzing.mutate import mutated, pieces
from fuzzing.rig import ClientEnd, EngineEnd, Fault, Rig, chunk
from spillway.core.invariants import check_dispatcher
from spillway.core.policies import POLICIES, build_policy

HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
REPORT: dict[str, object] = {
    "node_id": "d0",
    "role": "decode",
    "seq": 1,
    "step": 7,
    "backlog_prompts": 1,
    "backlog_tokens": 500,
    "backlog_token_pairs": 125000.0,
    "decode_seqs": 3,
    "kv_used_tokens": 9000,
    "kv_capacity_tokens": 400000,
    "dispatch_seen": {"r": 5},
    "tbt_s_min": 0.05,
    "last_step_predicted_s": 0.02,
    "last_step_actual_s": 0.021,
    "recent_steps": [[7, 3, 9000, 64, 2080.0, 0.021, 0.02, 0.001, 0.04]],
    "chunk_mode": "engine",
    "chunk_tokens_max": 512,
    "gain_decode": 1.1,
    "gain_prefill": 0.9,
    "margin": 1.2,
}
VALUES = (
    *(0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, 0.0, 1e-300, 1e-9, 1e18),
    *(
        1e308,
        -1e308,
        None,
        True,
        "",
        "engine",
        "static",
        "unknown",
        [],
        {},
        {"r": 10**18},
        "x" * 300,
    ),
    *([[1] * 9] * 70, [[0] * 6], [[7, 1, 1, 1, 1e308, 1e308]], {str(n): n for n in range(40)}),
)
BODY = b'{"model":"m","prompt":"%b","max_tokens":4,"stream":true}' % (b"word " * 400)
ASK = b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: %d\r\n\r\n%b" % (
    len(BODY),
    BODY,
)
ANSWERED_S = 130.0  # held for its time, then as any request


class ReportSurface:
    """A few lines of one node's reports per input, and at times a request decided upon them."""

    name = "reports"

    def __init__(self, seed: int) -> None:
        self.rig = Rig(build_policy(sorted(POLICIES)[seed % len(POLICIES)]), "p0 p1 d0 d1")
        self._streams: dict[str, EngineEnd] = {}
        self._seq = 0

    def __enter__(self) -> ReportSurface:
        for name, engine in self.rig.engines.items():
            engine.on_page = lambda end, target, name=name: self._open(name, end, target)
        self.rig.__enter__()
        self.rig.loop.run()
        return self

    def __exit__(self, *_) -> None:
        self.rig.__exit__()

    def one(self, draw: Random) -> list[str]:
        name = draw.choice(sorted(self.rig.engines))
        metrics = self.rig.server.shell.metrics
        taken = sum(metrics.reports.values())
        data = b"".join(self._line(draw, name) for _ in range(draw.choice((1, 1, 2, 5))))
        stream = chunk(data)
        if draw.random() < 0.05:
            stream = mutated(draw, stream, [stream, HEAD])
        for piece in pieces(draw, stream):
            self._streams[name].send(piece)
        self.rig.loop.run()
        ends = ["taken" if sum(metrics.reports.values()) > taken else "dropped"]
        check_dispatcher(self.rig.server.shell.dispatcher)
        if draw.random() < 0.1:
            self.rig.loop.advance(draw.choice((0.01, 0.5, 6.0)))
        if draw.random() < 0.2:
            ends.append(self._ask())
        return ends

    def _open(self, name: str, end: EngineEnd, target: bytes) -> bool:
        if not target.startswith(b"/spillway/reports"):
            return False
        self._streams[name] = end
        end.send(HEAD)
        return True

    def _line(self, draw: Random, name: str) -> bytes:
        self._seq += 1
        shell = self.rig.server.shell
        role = "prefill" if name.startswith("p") else "decode"
        report = REPORT | {"node_id": name, "role": role, "seq": self._seq}
        report["dispatch_seen"] = {shell.router_id: draw.randrange(50)}
        for _ in range(draw.choice((0, 1, 1, 3, 8))):
            report[draw.choice(tuple(REPORT))] = draw.choice(VALUES)
        line = json.dumps(report).encode()
        if draw.random() < 0.2:
            line = mutated(draw, line, [line])
        return line + b"\n"

    def _ask(self) -> str:
        """Whatever nodes say, a request is answered: they work."""
        client = ClientEnd(self.rig)
        client.transport.deliver(ASK)
        self.rig.loop.run()
        waited_s = 0.0
        while self.rig.server.shell.live and waited_s < ANSWERED_S:
            self.rig.loop.advance(2.0)
            waited_s += 2.0
        got = [answer.status for answer in answers(bytes(client.got), is_closed=False)]
        client.transport.lose(None)
        self.rig.loop.run()
        self.rig.check_empty()
        if got != [200]:
            raise Fault(f"answered {got}")
        return "200"
