"""INV-9 with both drivers: the tape of a simulated run, played to the live shell.

The shell is the real one; in place of sockets it has stand-ins that note what it would send. Each
fact of the tape is brought about the way the network does it: a request is parsed, a leg answers,
breaks or is refused, a client closes. What reaches the stand-ins must be what the simulator did.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import tape
from spillway.core.dispatcher import Dispatcher, DispatchLimits
from spillway.core.events import (
    AbortOnNode,
    Action,
    AnswerError,
    ClientLeft,
    Event,
    FirstToken,
    LegFailed,
    LogDecision,
    NodeBack,
    NodeLost,
    NodeReported,
    PrefillFinished,
    RequestArrived,
    RequestFinished,
    SetTimer,
    StartDecode,
    StartDeflected,
    StartPrefill,
    TimerFired,
)
from spillway.core.policies import POLICY_NAMES, build_policy
from spillway.core.types import RequestView
from spillway.router.decision_log import DecisionLog
from spillway.router.http_client import Fault, Framing, ResponseHead
from spillway.router.http_server import ClientConnection, Request
from spillway.router.prefill_leg import PrefillLeg
from spillway.router.settings import Classes, RouterSettings
from spillway.router.shell import Shell

pytestmark = pytest.mark.slow

STREAM = ResponseHead(200, [b"content-type: text/event-stream\r\n"], Framing.CHUNKED, b"", True)
FIRST_EVENT = b'16\r\ndata: {"choices":[]}\n\n\r\n'
JSON_ANSWER = ResponseHead(200, [], Framing.LENGTH, b"", False)
HANDOVER = (
    b'{"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_port":5600,'
    b'"remote_engine_id":"e","remote_request_id":"r","remote_block_ids":[1,2],"tp_size":1,'
    b'"remote_host":"%b"}}'
)
Sent = tuple[object, ...]


class Leg:
    """An exchange with an engine that exists only as a note."""

    is_connecting = False

    def __init__(self, node_id: str, request_id: str, sink: Any, note: Callable[..., None]) -> None:
        self.node_id, self.request_id, self.sink, self._note = node_id, request_id, sink, note

    def abort(self) -> None:
        self._note("abort", self.request_id, self.node_id)

    def is_between_chunks(self) -> bool:
        return True


class Pool:
    """The way to one engine."""

    def __init__(self, node_id: str, play: Play) -> None:
        self.node_id, self.play = node_id, play

    def post(
        self, sink: Any, target: bytes, lines: bytes, body: bytes, *, may_resend: bool = True
    ) -> Leg:
        header = dict(re.findall(r"([\w-]+): ([^\r]*)\r\n", lines.decode()))
        request_id = header["x-request-id"]
        dispatch_id = int(header["x-spillway-dispatch"].partition(":")[2])
        asked = json.loads(body)
        at = (request_id, self.node_id, dispatch_id)
        if isinstance(sink, PrefillLeg):
            assert asked["max_tokens"] == 1
            self.play.note("prefill", *at)
        elif "kv_transfer_params" in asked:
            self.play.note("decode", *at, asked["kv_transfer_params"]["remote_host"])
        else:
            self.play.note("deflected", *at, header.get("x-spillway-chunks", ""))
        leg = self.play.legs[request_id] = Leg(self.node_id, request_id, sink, self.play.note)
        return leg


class Client(asyncio.Transport):
    """The socket of a client with one request, which notes how that is answered."""

    def __init__(self, request_id: str, play: Play) -> None:
        super().__init__()
        self.request_id, self.play = request_id, play

    def write(self, data: bytes | bytearray | memoryview) -> None:
        written = bytes(data)
        if written.startswith(b"HTTP/1.1 ") and not written.startswith(b"HTTP/1.1 200"):
            self.play.note("error", self.request_id, int(written[9:12]))
        elif b'"error":{' in written:
            self.play.note("error", self.request_id, "in the stream")

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Front:
    """Hands every request to the shell."""

    def __init__(self, shell: Shell) -> None:
        self.shell = shell
        self.settings = shell.settings
        self.connections: set[ClientConnection] = set()
        self.now_s = 0.0

    def on_request(self, conn: ClientConnection, request: Request) -> None:
        self.shell.submit(conn, request, is_chat=False)

    def on_bad_request(self, status: int) -> None:
        raise AssertionError(f"the request was refused with {status}")


class TapeClock:
    """Says what the tape says."""

    at_s = 0.0

    def now_s(self) -> float:
        return self.at_s

    async def sleep_until(self, due_s: float) -> None:
        raise AssertionError("nothing waits while a tape is played")


class Play:
    """A shell between stand-ins."""

    def __init__(self, policy: str) -> None:
        scenario = tape.scenario(policy)
        limits = DispatchLimits(
            report_age_max_s=scenario.report_age_max_s, retries_max=scenario.retries_max
        )
        self.specs = scenario.specs()
        self.dispatcher = Dispatcher(build_policy(policy), self.specs, limits)
        self.clock = TapeClock()
        self.sent: list[Sent] = []
        self.legs: dict[str, Leg] = {}
        self.shell = Shell(
            self.dispatcher,
            {spec.node_id: Pool(spec.node_id, self) for spec in self.specs},  # type: ignore[misc]
            Classes(dict(scenario.slos)),
            RouterSettings(),
            self.clock,
            DecisionLog(policy, 1),
        )
        self.shell.on_timer = partial(self.note, "timer")
        self.front = Front(self.shell)
        self.conns: dict[str, ClientConnection] = {}

    def note(self, *what: object) -> None:
        self.sent.append(what)

    def happen(self, event: Event, now_s: float) -> list[Sent]:
        """Bring the fact about; return what the shell did."""
        self.clock.at_s = now_s
        self.sent.clear()
        match event:
            case RequestArrived(request):
                self.ask(request)
            case PrefillFinished(request_id):
                leg = self.legs[request_id]
                leg.sink.on_head(JSON_ANSWER)
                leg.sink.on_body(HANDOVER % leg.node_id.encode())
                leg.sink.on_end()
            case FirstToken(request_id):
                self.legs[request_id].sink.on_head(STREAM)
                self.legs[request_id].sink.on_body(FIRST_EVENT)
            case RequestFinished(request_id, output_tokens):
                sink = self.legs[request_id].sink
                sink.on_body(b'data: {"usage":{"completion_tokens":%d}}' % output_tokens)
                sink.on_end()
            case LegFailed(request_id, _, _, refused):
                self.legs[request_id].sink.on_fault(Fault.REFUSED if refused else Fault.BROKEN)
            case ClientLeft(request_id):
                self.conns[request_id].eof_received()
            case NodeReported() | NodeLost() | NodeBack() | TimerFired():
                self.shell.tell(event)
        return list(self.sent)

    def ask(self, view: RequestView) -> None:
        prompt = [1] * view.prompt_tokens  # token ids: their number is exact
        body = {"model": "m", "prompt": prompt, "max_tokens": view.output_tokens_max}
        content = json.dumps(body | {"stream": True}).encode()
        conn = self.conns[view.request_id] = ClientConnection(self.front)
        conn.connection_made(Client(view.request_id, self))
        conn.data_received(
            b"POST /v1/completions HTTP/1.1\r\nhost: router\r\nx-request-id: %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (view.request_id.encode(), len(content), content)
        )
        live = self.shell.live.get(view.request_id)
        # Patience is the driver's own: no decision depends on it while it lasts.
        assert live is None or live.view._replace(deadline_s=view.deadline_s) == view


def expected(orders: tuple[Action, ...], started: set[str]) -> list[Sent]:
    """What a driver must have done for these orders."""
    done: list[Sent] = []
    for order in orders:
        match order:
            case StartPrefill(request_id, node_id, dispatch_id):
                done.append(("prefill", request_id, node_id, dispatch_id))
            case StartDecode(request_id, node_id, dispatch_id, prefill_node_id):
                done.append(("decode", request_id, node_id, dispatch_id, prefill_node_id))
            case StartDeflected(request_id, node_id, dispatch_id, _, chunks):
                plan = ",".join(f"{size}*{steps}" for size, steps in chunks)
                done.append(("deflected", request_id, node_id, dispatch_id, plan))
            case AbortOnNode(request_id, node_id):
                done.append(("abort", request_id, node_id))
            case AnswerError(request_id, status, _):
                told = "in the stream" if request_id in started else status
                done.append(("error", request_id, told))
            case SetTimer(at_s):
                done.append(("timer", at_s))
            case LogDecision():
                pass
    return done


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_inv_9_router_and_simulator_do_the_same_for_the_same_facts(policy: str) -> None:
    recorded = tape.record(policy)
    play = Play(policy)
    started: set[str] = set()
    deeds = 0
    for heard in recorded.heard:
        did = play.happen(heard.event, heard.now_s)
        if isinstance(heard.event, FirstToken):
            started.add(heard.event.request_id)
        assert did == expected(heard.orders, started)
        deeds += len(did)
    assert deeds >= len(tape.rows())
    assert play.dispatcher.counts == recorded.dispatcher.counts
    assert play.dispatcher.ignored_events == recorded.dispatcher.ignored_events
    nodes = recorded.dispatcher.ledger.nodes
    for node_id, node in play.dispatcher.ledger.nodes.items():
        assert node.view == nodes[node_id].view
    assert play.shell.live == {}
