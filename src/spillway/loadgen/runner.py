"""Sends a workload on schedule, never waiting for an answer, and collects what came of it.

Every request of the plan ends in exactly one record: also the one that could not be sent because
too many were in flight, and the one still running when patience ran out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from math import isfinite
from typing import Any, NamedTuple

import aiohttp

from spillway.clock import Clock, MonotonicClock
from spillway.core.errors import ConfigError
from spillway.core.types import Slo
from spillway.loadgen import prompts
from spillway.loadgen.client import complete, completion_body, completion_headers, open_session
from spillway.loadgen.exchange import Exchange, TextCheck
from spillway.loadgen.schedule import Due, Lateness, lateness, schedule
from spillway.stats import GapHistogram
from spillway.wire.faketext import prompt_digest
from spillway.wire.records import RequestRecord
from spillway.workload.row import Row


class PromptKind(StrEnum):
    """How a prompt is written."""

    IDS = "ids"  # token ids: the length is exact
    TEXT = "text"  # words: about as many tokens as wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to send.

    base_url: of the endpoint, without /v1.       slo_by_class: targets of classes unlike `slo`.
    in_flight_max: requests open at once; one that is due beyond that is not sent but recorded as
        failed and counted.
    drain_s: patience for open requests after the last one was sent.
    connect_s, silence_s: bounds on connecting, and on the wait for the next byte.
    check_text: the endpoint is a simulated engine; every token must be the expected one.
    headers: sent along with every request, such as Authorization.

    Raises ConfigError on a value that cannot work.
    """

    base_url: str
    model: str
    slo: Slo
    slo_by_class: Mapping[str, Slo] = field(default_factory=dict)
    prompt_kind: PromptKind = PromptKind.IDS
    in_flight_max: int = 4_096
    drain_s: float = 60.0
    connect_s: float = 10.0
    silence_s: float = 300.0
    check_text: bool = False
    run_id: str = "load"
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"url {self.base_url!r}: it must start with http:// or https://")
        if self.in_flight_max < 1:
            raise ConfigError(f"in_flight_max is {self.in_flight_max}; it must be at least 1")
        for name, bound_s in (
            ("drain_s", self.drain_s),
            ("connect_s", self.connect_s),
            ("silence_s", self.silence_s),
        ):
            if not (isfinite(bound_s) and bound_s > 0):
                raise ConfigError(f"{name} is {bound_s}; it must be a finite number above 0")


class Progress(NamedTuple):
    """Where a run stands. ended: records so far, whatever the outcome."""

    planned: int
    sent: int
    in_flight: int
    ended: int
    failed: int
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What came of a run.

    records: one per request that arrived, in order of the plan.  gaps: every token gap.
    overflowed: requests not sent for lack of room in flight (they are among the records, failed).
    unsent: requests of the plan that were not due yet when the run was stopped; no record.
    """

    records: list[RequestRecord]
    gaps: GapHistogram
    lateness: Lateness
    overflowed: int
    unsent: int
    wall_s: float


async def run_load(
    rows: Sequence[Row],
    options: LoadOptions,
    *,
    clock: Clock | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> LoadResult:
    """Send `rows` at their times and return what came of them.

    progress: called after every send and every end; it must be quick.
    stop: when set, nothing more is sent, open requests are cancelled, and what is known returns.
    Returns at the latest drain_s after the last request was due and sent. If the caller's own task
    is cancelled, every request is cancelled too and the cancellation passes on.
    """
    async with open_session(connect_s=options.connect_s, silence_s=options.silence_s) as session:
        run = _Run(session, schedule(rows, options.run_id), options, clock or MonotonicClock())
        return await run.run(progress, stop or asyncio.Event())


class _Run:
    """The state of one run."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        plan: Sequence[Due],
        options: LoadOptions,
        clock: Clock,
    ) -> None:
        self._session = session
        self._plan = plan
        self._options = options
        self._clock = clock
        self._url = f"{options.base_url.rstrip('/')}/v1/completions"
        self._start_s = clock.now_s()
        self._gaps = GapHistogram()
        self._records: dict[int, RequestRecord] = {}
        self._late_s: list[float] = []
        self._open: set[asyncio.Task[None]] = set()
        self._all_ended = asyncio.Event()
        self._reached = 0
        self._overflowed = 0
        self._failed = 0
        self._bug: BaseException | None = None  # a request's network errors end as its outcome
        self._cut = ("cancelled", "the run was stopped")
        self._progress: Callable[[Progress], None] | None = None

    async def run(
        self, progress: Callable[[Progress], None] | None, stop: asyncio.Event
    ) -> LoadResult:
        self._progress = progress
        stopped = asyncio.create_task(stop.wait())
        quiet = asyncio.create_task(self._all_ended.wait())
        try:
            await _race(self._send_all(), stopped)
            if self._open and not stop.is_set():
                patience_s = self._options.drain_s
                await _race(
                    self._clock.sleep_until(self._clock.now_s() + patience_s), stopped, quiet
                )
                if not stop.is_set():
                    self._cut = ("failed", f"not finished {patience_s:g} s after the last send")
        finally:
            tasks = [stopped, quiet, *self._open]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if self._bug is not None:
            raise self._bug
        return LoadResult(
            records=[self._records[index] for index in sorted(self._records)],
            gaps=self._gaps,
            lateness=lateness(self._late_s),
            overflowed=self._overflowed,
            unsent=len(self._plan) - self._reached,
            wall_s=self._clock.now_s() - self._start_s,
        )

    async def _send_all(self) -> None:
        for index, due in enumerate(self._plan):
            # Made before it is due, so that a long prompt delays nobody.
            exchange, body, headers = self._prepare(due)
            await self._clock.sleep_until(self._start_s + due.due_s)
            self._reached += 1
            if len(self._open) >= self._options.in_flight_max:
                self._overflowed += 1
                error = f"not sent: {len(self._open)} requests in flight already"
                exchange.end("failed", self._clock.now_s(), error)
                self._settle(index, exchange)
                continue
            task = asyncio.create_task(
                complete(self._session, self._url, body, headers, exchange, self._clock)
            )
            self._open.add(task)
            task.add_done_callback(partial(self._ended, index, due, exchange))
            self._report()

    def _prepare(self, due: Due) -> tuple[Exchange, bytes, dict[str, str]]:
        options, row = self._options, due.row
        slo = options.slo_by_class.get(row.class_name, options.slo)
        make = prompts.token_ids if options.prompt_kind is PromptKind.IDS else prompts.text
        prompt = make(row, due.request_id)
        check = TextCheck(prompt_digest(prompt)) if options.check_text else None
        return (
            Exchange(due.request_id, row, slo, self._gaps, check),
            completion_body(options.model, prompt, row.output_tokens),
            completion_headers(due.request_id, slo, options.headers),
        )

    def _ended(self, index: int, due: Due, exchange: Exchange, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        if exchange.sent_s is not None:
            self._late_s.append(exchange.sent_s - self._start_s - due.due_s)
        if task.cancelled():
            outcome, error = self._cut
            exchange.end(outcome, self._clock.now_s(), error)
        else:
            self._bug = self._bug or task.exception()
        self._settle(index, exchange)

    def _settle(self, index: int, exchange: Exchange) -> None:
        self._records[index] = exchange.record(self._start_s)
        self._failed += exchange.outcome == "failed"
        if self._reached == len(self._plan) and not self._open:
            self._all_ended.set()
        self._report()

    def _report(self) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    planned=len(self._plan),
                    sent=self._reached - self._overflowed,
                    in_flight=len(self._open),
                    ended=len(self._records),
                    failed=self._failed,
                    elapsed_s=self._clock.now_s() - self._start_s,
                )
            )


async def _race(work: Coroutine[Any, Any, None], *others: asyncio.Task[Any]) -> None:
    """Run `work` until it or one of `others` is done, then cancel it. Raises what it raises."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task, *others), return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled():
        task.result()
