"""How a router asks a node for leave to deflect, and what the node answers.

`POST /spillway/reserve?router=ID&dispatch=N&tokens=T&pairs=P&ahead=A`, without a body, where the
node's reports are read. 200 is leave, 409 is none; either way the body is a `ReserveAnswer`, and a
409 brings the node's report of that moment. Only asked while a report says that several routers
listen. Source of the rule: `core.reservation`.
"""

from __future__ import annotations

from math import isfinite
from urllib.parse import parse_qs, urlencode

import msgspec

from spillway.core.errors import NodeError, RequestError
from spillway.core.reservation import Ask, Grants, NodeLoad, Verdict
from spillway.wire.order import DISPATCH_DIGITS_MAX, ROUTER_ID_CHARS_MAX
from spillway.wire.report import NodeReport

RESERVE_PATH = "/spillway/reserve"
STATUS_GRANTED, STATUS_DECLINED = 200, 409


class ReserveAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says. report: how it stands, what it has granted included; None with a grant."""

    verdict: Verdict
    report: NodeReport | None = None


_DECODER = msgspec.json.Decoder(ReserveAnswer)


def reserve_target(ask: Ask) -> str:
    """Return the request target of a question."""
    query = {
        "router": ask.router_id,
        "dispatch": ask.dispatch_id,
        "tokens": ask.tokens,
        "pairs": f"{ask.pairs:.17g}",
        "ahead": ask.backlog_tokens_max,
    }
    return f"{RESERVE_PATH}?{urlencode(query)}"


def read_ask(query: str) -> Ask:
    """Return the question of a request target's query. Raises RequestError naming what is wrong."""
    given = parse_qs(query, max_num_fields=16)
    router_id = given.get("router", [""])[-1]
    if not 0 < len(router_id) <= ROUTER_ID_CHARS_MAX:
        raise RequestError("say who asks: router=ID", param="router")
    try:
        pairs = float(given.get("pairs", ["0"])[-1])
    except ValueError:
        pairs = -1.0
    if not (isfinite(pairs) and pairs >= 0):
        raise RequestError("pairs must be a number >= 0", param="pairs")
    dispatch_id, tokens, ahead = (_count(given, name) for name in ("dispatch", "tokens", "ahead"))
    return Ask(router_id, dispatch_id, tokens, pairs, ahead)


def _count(given: dict[str, list[str]], name: str) -> int:
    text = given.get(name, [""])[-1]
    if not (text.isascii() and text.isdigit() and len(text) <= DISPATCH_DIGITS_MAX):
        raise RequestError(f"{name} must be a whole number >= 0", param=name)
    return int(text)


def encode_answer(verdict: Verdict, report: NodeReport) -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    if verdict is Verdict.GRANTED:
        return STATUS_GRANTED, msgspec.json.encode(ReserveAnswer(verdict))
    return STATUS_DECLINED, msgspec.json.encode(ReserveAnswer(verdict, report))


def decode_answer(body: bytes) -> ReserveAnswer:
    """Return an answer. Raises NodeError when it is none."""
    try:
        return _DECODER.decode(body)
    except msgspec.MsgspecError as error:
        raise NodeError(f"not an answer to a reservation: {error}") from error


def load_of(report: NodeReport) -> NodeLoad:
    """Return how a node stands, from a report without what it has granted."""
    return NodeLoad(
        report.backlog_tokens, report.kv_used_tokens, report.kv_capacity_tokens, report.over_budget
    )


def with_grants(report: NodeReport, grants: Grants, routers: int) -> NodeReport:
    """Return the report with granted work as part of the backlog, and as dispatches seen.

    routers: how many listen to the node. O(granted).
    """
    routers = max(1, routers)
    if not grants.prompts:
        return report if routers == 1 else msgspec.structs.replace(report, routers=routers)
    seen = dict(report.dispatch_seen)
    for router_id, dispatch_id in grants.seen().items():
        seen[router_id] = max(dispatch_id, seen.get(router_id, 0))
    return msgspec.structs.replace(
        report,
        routers=routers,
        dispatch_seen=seen,
        backlog_prompts=report.backlog_prompts + grants.prompts,
        backlog_tokens=report.backlog_tokens + grants.tokens,
        backlog_token_pairs=report.backlog_token_pairs + grants.pairs,
    )
