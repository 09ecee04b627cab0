"""`spillway explain`: why a request went where it went, from a running router or from a log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spillway.wire.decisions import DecisionRecord

LISTED = 20
TIMEOUT_S = 10.0


def explain(
    request_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Request id. Without one, the last decisions."),
    ] = None,
    url: Annotated[str, typer.Option(help="The running router.")] = "http://127.0.0.1:8000",
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read a decision log instead of asking a router."),
    ] = None,
) -> None:
    """Explain a decision: every way looked at, and why it won or lost.

    The id of a request is the x-request-id header of its answer. A running router
    keeps its last decisions; a log keeps all of them (serve --decision-log,
    simulate --decisions).

    [bold]Examples[/bold]
      spillway explain                              (lists the last decisions)
      spillway explain load-17
      spillway explain r42 --log build/decisions.jsonl
    """
    from spillway.core.errors import ConfigError
    from spillway.report.explain import print_explanation

    where = f"--log {log}" if log is not None else f"--url {url}"
    found = read_log(log, request_id) if log is not None else ask_router(url, request_id)
    if not found:
        what = "decision" if request_id is None else f"decision about request {request_id!r}"
        raise ConfigError(f"{where}: no {what} there; list them with: spillway explain {where}")
    if request_id is None:
        _list(found[:LISTED])
        return
    for at, record in enumerate(reversed(found)):
        print("\n" if at else "", end="")
        print_explanation(record)


def read_log(path: Path, request_id: str | None) -> list[DecisionRecord]:
    """Return the decisions in a log about one request, or all of them, the newest first.

    Raises ConfigError, naming the line, on a file that is no decision log.
    """
    import msgspec

    from spillway.core.errors import ConfigError
    from spillway.router.decision_log import decode_line

    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"--log {path}: cannot be read: {error.strerror}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        if request_id is not None and request_id.encode() not in line:
            continue
        try:
            record = decode_line(line).logged
        except msgspec.MsgspecError as error:
            raise ConfigError(f"--log {path}, line {number}: no decision: {error}") from None
        if request_id is None or record.request.request_id == request_id:
            found.append(record)
    return found[::-1]


def ask_router(url: str, request_id: str | None, count: int = LISTED) -> list[DecisionRecord]:
    """Return the decisions about a request that a router keeps, or its last `count`, newest first.

    Raises ConfigError when no router answers at `url`.
    """
    import urllib.error
    import urllib.parse
    import urllib.request

    import msgspec

    from spillway.core.errors import ConfigError
    from spillway.wire.decisions import DecisionRecord

    query = f"n={count}" if request_id is None else f"id={urllib.parse.quote(request_id)}"
    page = f"{url.rstrip('/')}/debug/decisions?{query}"
    try:
        with urllib.request.urlopen(page, timeout=TIMEOUT_S) as answer:
            data = answer.read()
    except urllib.error.HTTPError as error:
        if error.code == 404 and request_id is not None:
            return []
        raise ConfigError(f"--url {url}: {page} answered {error.code}; is it a router?") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--url {url}: cannot be reached: {getattr(error, 'reason', error)}; "
            "start a router (spillway up, spillway serve), or read a log with --log FILE"
        ) from None
    try:
        answered = msgspec.json.decode(data, type=dict[str, list[DecisionRecord]])
        return answered["decisions"]
    except (msgspec.MsgspecError, KeyError):
        raise ConfigError(f"--url {url}: {page} gave no decisions; is it a router?") from None


def _list(records: list[DecisionRecord]) -> None:
    from spillway.report.explain import way
    from spillway.report.grid import Cell, Grid, print_grid
    from spillway.report.tables import NOTHING, seconds

    rows = []
    for record in records:
        decision = record.decision
        predicted = seconds(decision.estimate.total_s) if decision.estimate else NOTHING
        cells = (
            record.request.request_id,
            way(decision.prefill_node_id, decision.decode_node_id),
            decision.reason,
            f"{record.request.prompt_tokens:,}",
            predicted,
        )
        deflected = decision.route == "deflected"
        rows.append(tuple(Cell(text, deflected and at == 1) for at, text in enumerate(cells)))
    head = ("request", "way", "reason", "prompt\ntokens", "TTFT s\npredicted")
    print_grid(Grid(head, tuple(rows), left=3), sys.stdout)
