"""Reads recorded sessions of coding agents (kv-cache-tester): one JSON file per session.

A session's requests carry their time from its start, and the ids of their whole 64-token blocks;
the partial block at the end of a prompt has no id. Ids are local to a session, so each session gets
ids of its own here. An element of type `subagent` is no request but holds some, timed from its own
start: a conversation inside the conversation, on the same blocks. Sessions say nothing of when they
began: their starts are drawn uniformly over an hour, which makes session arrivals Poisson given
their number. Source: github.com/callanjfox/kv-cache-tester.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from spillway.workload.parsing import (
    BadRow,
    Bundle,
    Content,
    Drops,
    Reading,
    by_arrival,
    checked_time,
    checked_tokens,
    decode_line,
)
from spillway.workload.row import Row
from spillway.workload.seeds import stream

STARTS_S = 3_600.0  # the span over which sessions start
NESTING_MAX = 8
SUBAGENT = "subagent"


class _Request(msgspec.Struct):
    at_s: float = msgspec.field(name="t")
    type: str = ""
    prompt_tokens: int | None = msgspec.field(default=None, name="in")
    output_tokens: int | None = msgspec.field(default=None, name="out")
    hash_ids: list[int] = []
    think_s: float = msgspec.field(default=0.0, name="think_time")
    requests: list[_Request] = []


class _Session(msgspec.Struct):
    block_size: int
    requests: list[_Request]
    id: str = ""


class _Turn(NamedTuple):
    """A request, with the session it belongs to and its time from the start of the outermost."""

    request: _Request
    session_id: str
    at_s: float


def _matches(name: str, content: bytes) -> bool:
    return name.endswith(".json") and b'"block_size"' in content and b'"requests"' in content


def _read(members: Mapping[str, bytes], drops: Drops, reading: Reading) -> Content:
    """Sessions come in the order of their names."""
    decoder = msgspec.json.Decoder(_Session)
    draw = stream(reading.seed, "agentic.starts").random
    rows: list[Row] = []
    ids_used = sessions = 0
    for name in sorted(members):
        start_s = STARTS_S * draw()
        try:
            session = decode_line(decoder, members[name])
        except BadRow as bad:
            drops.add(f"no session: {bad}", name)
            continue
        sessions += 1
        turns = list(_turns(session.requests, session.id or name, 0.0))
        ids = _distinct_ids(turns, ids_used)
        ids_used += len(ids)
        for turn in turns:
            try:
                rows.append(_row(turn, start_s, session.block_size, ids))
            except BadRow as bad:
                drops.add(str(bad), name)
    starts = f"{sessions} sessions, starts drawn uniformly over {STARTS_S:.0f} s"
    return Content(by_arrival(rows), (f"{starts} (seed {reading.seed})",))


def _turns(
    requests: Sequence[_Request], session_id: str, start_s: float, depth: int = 0
) -> Iterator[_Turn]:
    """Yield the requests in order of the file, those of subagents where the subagent stands."""
    nested = 0
    for request in requests:
        if request.type == SUBAGENT and depth < NESTING_MAX:
            nested += 1
            inner_id = f"{session_id}/{nested}"
            yield from _turns(request.requests, inner_id, start_s + request.at_s, depth + 1)
        else:
            yield _Turn(request, session_id, start_s + request.at_s)


def _distinct_ids(turns: Sequence[_Turn], first_id: int) -> dict[int, int]:
    """Return a session's block ids with ids from `first_id` on, unused in other sessions."""
    ids: dict[int, int] = {}
    for turn in turns:
        for local in turn.request.hash_ids:
            if local not in ids:
                ids[local] = first_id + len(ids)
    return ids


def _row(turn: _Turn, start_s: float, block_tokens: int, ids: Mapping[int, int]) -> Row:
    request = turn.request
    if request.prompt_tokens is None or request.output_tokens is None:
        raise BadRow("a request without in or out")
    prompt_tokens = checked_tokens(request.prompt_tokens, "in")
    if request.output_tokens == 0:
        raise BadRow("out is 0: nothing was generated")
    if len(request.hash_ids) * checked_tokens(block_tokens, "block_size") > prompt_tokens:
        raise BadRow("hash_ids reach beyond in")
    return Row(
        start_s + checked_time(turn.at_s, "t"),
        prompt_tokens,
        checked_tokens(request.output_tokens, "out"),
        prefix_blocks=tuple(map(ids.__getitem__, request.hash_ids)),
        block_tokens=block_tokens if request.hash_ids else 0,
        session_id=turn.session_id,
        think_s=max(0.0, request.think_s),
    )


BUNDLE = Bundle("agentic", "folder or .tar.xz of session files with block_size", _matches, _read)
