"""What can be done to rows before they are replayed: cut, thin, overlay, merge, redraw.

Each function takes rows in order of arrival and returns rows in order of arrival; whatever draws
takes a seed. `apply_operation` takes one as text, `thin=0.5`, for command lines and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isfinite
from typing import NamedTuple

from spillway.core.errors import ConfigError
from spillway.wire.codec import did_you_mean
from spillway.workload.parsing import by_arrival
from spillway.workload.row import Row
from spillway.workload.seeds import stream

COPIES_MAX = 1000


class Dated(NamedTuple):
    """Rows and the wall clock at their second 0, in ns since 1970; None when they have none."""

    rows: Sequence[Row]
    clock_ns: int | None


def window(rows: Sequence[Row], from_s: float = 0.0, to_s: float = inf) -> list[Row]:
    """Return the rows that arrive in [from_s, to_s), with `from_s` as the new 0.

    Raises ConfigError when the window is empty by construction.
    """
    if not from_s < to_s:
        raise ConfigError(f"the window from {from_s} s to {to_s} s is empty; let it end later")
    return [
        row._replace(arrival_s=row.arrival_s - from_s)
        for row in rows
        if from_s <= row.arrival_s < to_s
    ]


def speed_up(rows: Sequence[Row], factor: float) -> list[Row]:
    """Return the rows arriving `factor` times as fast. Raises ConfigError unless it is > 0."""
    if not (isfinite(factor) and factor > 0):
        raise ConfigError(f"a speed-up of {factor} is not possible; give a number above 0")
    return [row._replace(arrival_s=row.arrival_s / factor) for row in rows]


def drop_longer_than(rows: Sequence[Row], context_tokens_max: int) -> tuple[list[Row], int]:
    """Return the rows whose prompt and output fit the model's context, and how many do not."""
    kept = [row for row in rows if row.prompt_tokens + row.output_tokens <= context_tokens_max]
    return kept, len(rows) - len(kept)


def largest_burst(rows: Sequence[Row], window_s: float) -> tuple[float, float]:
    """Return (from_s, to_s) of the window of `window_s` in which most prompt tokens arrive.

    `rows` is in order of arrival; the window starts with an arrival. (0, window_s) without rows.
    Raises ConfigError unless the window is longer than 0. Cost O(rows).
    """
    if not window_s > 0:
        raise ConfigError(f"a window of {window_s} s holds nothing; give a length above 0")
    best_s, best_tokens, held_tokens, end = 0.0, -1, 0, 0
    for row in rows:
        while end < len(rows) and rows[end].arrival_s < row.arrival_s + window_s:
            held_tokens += rows[end].prompt_tokens
            end += 1
        if held_tokens > best_tokens:
            best_s, best_tokens = row.arrival_s, held_tokens
        held_tokens -= row.prompt_tokens
    return best_s, best_s + window_s


def thin(rows: Sequence[Row], keep_frac: float, seed: int) -> list[Row]:
    """Return a share of the rows: each session, or request without one, stays with that chance.

    Whole sessions, because half a conversation has no prefixes to reuse. Nested conversations go
    with the outer one. Raises ConfigError unless 0 < keep_frac <= 1.
    """
    if not 0 < keep_frac <= 1:
        raise ConfigError(f"thinning to a share of {keep_frac} is not possible; above 0, at most 1")
    draw = stream(seed, "thin").random
    chances: dict[str, float] = {}
    kept = []
    for row in rows:
        outer = row.session_id.partition("/")[0]
        chance = chances.setdefault(outer, draw()) if outer else draw()
        if chance < keep_frac:
            kept.append(row)
    return kept


def overlay(rows: Sequence[Row], copies: int) -> list[Row]:
    """Return the rows `copies` times over, copy k moved by k/copies of their span, round and round.

    So the load is `copies` times as high at every time of day, and no burst meets itself. Prefix
    ids and sessions of copies are distinct. Where a copy wraps round, a session begins with its
    later turns. Raises ConfigError unless copies is from 1 to COPIES_MAX.
    """
    if not 1 <= copies <= COPIES_MAX:
        raise ConfigError(f"an overlay of {copies} copies is not possible; 1 to {COPIES_MAX}")
    if copies == 1 or not rows:
        return list(rows)
    start_s, span_s = rows[0].arrival_s, _span_s(rows)
    moved = []
    for copy, distinct in enumerate(_kept_apart([rows] * copies)):
        shift_s = span_s * copy / copies
        moved += [
            row._replace(arrival_s=start_s + (row.arrival_s - start_s + shift_s) % span_s)
            for row in distinct
        ]
    return by_arrival(moved)


def merge(parts: Sequence[Dated]) -> tuple[list[Row], str]:
    """Return the rows of several workloads as one, and how their times were aligned.

    On the wall clock where all have one, from the earliest second 0 on; otherwise each from its own
    second 0. Prefix ids and sessions of the parts are distinct. Raises ConfigError when parts
    on the wall clock do not overlap: hours of silence between them are not what was meant.
    """
    apart = _kept_apart([part.rows for part in parts])
    clocks_ns = [part.clock_ns for part in parts if part.clock_ns is not None]
    if len(clocks_ns) < len(parts):
        return by_arrival([row for rows in apart for row in rows]), "each from its own second 0"
    start_ns = min(clocks_ns)
    moved: list[list[Row]] = []
    for rows, clock_ns in zip(apart, clocks_ns, strict=True):
        offset_s = (clock_ns - start_ns) / 1e9
        moved.append([row._replace(arrival_s=row.arrival_s + offset_s) for row in rows])
    end_s = -inf
    for rows in sorted(moved, key=lambda rows: rows[0].arrival_s):
        if rows[0].arrival_s > end_s > -inf:
            raise ConfigError(
                "the traces were recorded at different times; convert one first "
                "(spillway trace convert), which forgets its wall clock"
            )
        end_s = max(end_s, rows[-1].arrival_s)
    return by_arrival([row for rows in moved for row in rows]), "on the wall clock"


def poisson_arrivals(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the same requests, in the same order, at Poisson times over the same span.

    Given their number, the times of a Poisson process are independent and uniform. What remains of
    a tail with these arrivals is due to the lengths alone.
    """
    if not rows:
        return []
    draw, start_s, span_s = stream(seed, "poisson").random, rows[0].arrival_s, _span_s(rows)
    times_s = sorted(start_s + span_s * draw() for _ in rows)
    return [row._replace(arrival_s=at_s) for row, at_s in zip(rows, times_s, strict=True)]


def shuffle_lengths(rows: Sequence[Row], seed: int) -> list[Row]:
    """Return the same arrivals with the requests dealt out anew.

    What remains of a tail is due to the arrivals alone. Sessions come out of order with it.
    """
    order = list(range(len(rows)))
    stream(seed, "shuffle").shuffle(order)
    return [rows[at]._replace(arrival_s=row.arrival_s) for row, at in zip(rows, order, strict=True)]


def _span_s(rows: Sequence[Row]) -> float:
    """Return the time that the rows stand for: first to last arrival and one mean gap.

    Raises ConfigError when all arrive at once.
    """
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    if span_s <= 0.0:
        raise ConfigError("all requests arrive at once; there is no span to spread them over")
    return span_s * len(rows) / (len(rows) - 1)


def _kept_apart(parts: Sequence[Iterable[Row]]) -> list[list[Row]]:
    """Return the parts with prefix ids and session ids of which no two parts share one.

    The first part keeps its own. Ids stay shared objects, as a trace has many.
    """
    apart: list[list[Row]] = []
    used = 0
    for at, rows in enumerate(parts):
        if at == 0:
            apart.append(list(rows))
            used = max((max(row.prefix_blocks, default=-1) for row in apart[0]), default=-1) + 1
            continue
        ids: dict[int, int] = {}
        apart.append([_renamed(row, ids, used, f"{at}~") for row in rows])
        used += len(ids)
    return apart


def _renamed(row: Row, ids: dict[int, int], first_id: int, mark: str) -> Row:
    """Return the row with ids from `first_id` on, as `ids` remembers them, and a marked session."""
    if not (row.prefix_blocks or row.session_id):
        return row
    for block_id in row.prefix_blocks:
        if block_id not in ids:
            ids[block_id] = first_id + len(ids)
    return row._replace(
        prefix_blocks=tuple(map(ids.__getitem__, row.prefix_blocks)),
        session_id=mark + row.session_id if row.session_id else "",
    )


# --- as text ---------------------------------------------------------------------------------


class Operation(NamedTuple):
    """An operation under a name. value: what may stand behind `name=`."""

    value: str
    summary: str
    change: Callable[[Sequence[Row], str, int], list[Row]]


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name}={text}: a number is needed") from None


def _whole(text: str, name: str) -> int:
    number = _number(text, name)
    if not number.is_integer():
        raise ConfigError(f"{name}={text}: a whole number is needed")
    return int(number)


def _only(text: str, name: str, allowed: str) -> None:
    if text != allowed:
        raise ConfigError(f"{name}={text}: write {name}={allowed}")


def _redrawn(rows: Sequence[Row], text: str, seed: int) -> list[Row]:
    _only(text, "arrivals", "poisson")
    return poisson_arrivals(rows, seed)


def _dealt(rows: Sequence[Row], text: str, seed: int) -> list[Row]:
    _only(text, "lengths", "shuffled")
    return shuffle_lengths(rows, seed)


OPERATIONS: Mapping[str, Operation] = {
    "thin": Operation(
        "SHARE",
        "keep each session, or request without one, with this chance",
        lambda rows, text, seed: thin(rows, _number(text, "thin"), seed),
    ),
    "overlay": Operation(
        "COPIES",
        "lay so many copies over one another, each moved in time",
        lambda rows, text, seed: overlay(rows, _whole(text, "overlay")),
    ),
    "context-max": Operation(
        "TOKENS",
        "drop requests whose prompt and output are longer together",
        lambda rows, text, seed: drop_longer_than(rows, _whole(text, "context-max"))[0],
    ),
    "speed-up": Operation(
        "FACTOR",
        "let requests arrive so many times as fast",
        lambda rows, text, seed: speed_up(rows, _number(text, "speed-up")),
    ),
    "arrivals": Operation("poisson", "the same requests at Poisson times", _redrawn),
    "lengths": Operation("shuffled", "the same times with the requests dealt out anew", _dealt),
}


def apply_operation(rows: Sequence[Row], text: str, seed: int) -> tuple[list[Row], str]:
    """Return the rows after the operation in `text`, `name=value`, and what it did, in words.

    Raises ConfigError, naming the nearest operation, when there is none of that name.
    """
    name, equals, value = text.partition("=")
    operation = OPERATIONS.get(name)
    if operation is None or not equals:
        allowed = [f"{name}={one.value}" for name, one in OPERATIONS.items()]
        near = did_you_mean(name, list(OPERATIONS)).partition(" allowed: ")[0]
        hint = "" if near.startswith("allowed") or operation is not None else f"{near} "
        raise ConfigError(f"operation {text!r} is unknown; {hint}allowed: {', '.join(allowed)}")
    changed = operation.change(rows, value, seed)
    count = f"{len(rows):,} to {len(changed):,} requests"
    return changed, f"{text}: {operation.summary}; {count if len(changed) != len(rows) else 'done'}"
