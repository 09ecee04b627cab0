"""Where step times come from: the engine's own reports, or the token gaps of its streams.

Where the engine reports its steps (`wire.report.StepTaken`) these are exact and nothing is assumed
about its chunks. A stock engine tells nothing; its steps are read off the gaps (`gaps.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Protocol

from spillway.calib import gaps
from spillway.calib.client import SILENCE_S, EngineClient, TokenStream
from spillway.calib.regimes import Shape, shape
from spillway.calib.samples import EngineLimits, Sample
from spillway.clock import Clock
from spillway.core.errors import NodeError
from spillway.wire.report import NodeReport, StepTaken

DECODE_STEPS = 12  # watched at each rung before prompts are sent
DECODE_GAPS = 6 * gaps.GROUP_STEPS  # the same for an engine that reports none
SHAPE_SAMPLES_MAX = 12  # more repeats of one shape teach nothing new
POLL_S = 0.005
IDLE_S = 0.2  # for a stock engine to notice that its clients left


class Steps(Protocol):
    """Where step times come from. recording: whether they are kept."""

    recording: bool
    samples: list[Sample]
    steps_missed: int

    async def decode(self, streams: Sequence[TokenStream]) -> None:
        """Return when a dozen or two more steps of nothing but these streams have been seen."""
        ...

    async def prompted(self, prompt: TokenStream, streams: Sequence[TokenStream]) -> None:
        """Take note that a prompt sent beside the streams was answered."""
        ...

    async def idle(self) -> None:
        """Return when the engine has nothing left to do."""
        ...


class ReportedSteps:
    """Steps as the engine reports them.

    Of each shape at most SHAPE_SAMPLES_MAX are kept, drawn evenly from all that were reported:
    repeats in one breath would hide how an engine drifts.
    """

    def __init__(self, clock: Clock, rng: Random) -> None:
        self.recording = False
        self.samples: list[Sample] = []
        self.steps_missed = 0
        self._clock = clock
        self._rng = rng
        self._places: defaultdict[Shape, list[int]] = defaultdict(list)
        self._seen: Counter[Shape] = Counter()
        self._decoded: Counter[int] = Counter()
        self._last_step = -1
        self._reports = 0
        self._busy = True
        self._listener: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def listening(self, client: EngineClient) -> AsyncIterator[ReportedSteps]:
        """Read the client's report stream while the block runs."""
        async with client.reports() as reports:
            self._listener = asyncio.create_task(self._listen(reports))
            try:
                yield self
            finally:
                self._listener.cancel()
                await asyncio.gather(self._listener, return_exceptions=True)

    async def decode(self, streams: Sequence[TokenStream]) -> None:
        wanted_steps = self._decoded[len(streams)] + DECODE_STEPS
        await until(
            self._clock, lambda: self._heard(wanted_steps, streams), "a report of decode steps"
        )

    async def prompted(self, prompt: TokenStream, streams: Sequence[TokenStream]) -> None:
        """Nothing to do: the prompt's steps are in the reports."""

    async def idle(self) -> None:
        # The report under way may be older than the last request's end.
        since = self._reports + 1

        def idle() -> bool:
            self._check()
            return self._reports > since and not self._busy

        await until(self._clock, idle, "the engine to have nothing left to do")

    def take(self, report: NodeReport) -> None:
        """Take the steps of one report."""
        self._reports += 1
        self._busy = bool(report.decode_seqs or report.backlog_prompts)
        for step in report.recent_steps:
            if self.recording and 0 <= self._last_step < step.step - 1:
                self.steps_missed += step.step - 1 - self._last_step
            self._last_step = step.step
            if not step.prefill_tokens:
                self._decoded[step.decode_seqs] += 1
            # A step without tokens only waited for KV, or for something else.
            if self.recording and step.actual_s > 0 and step.decode_seqs + step.prefill_tokens:
                self._keep(_sample(step))

    def _keep(self, sample: Sample) -> None:
        kind = shape(sample)
        self._seen[kind] += 1
        places = self._places[kind]
        if len(places) < SHAPE_SAMPLES_MAX:
            places.append(len(self.samples))
            self.samples.append(sample)
        elif (drawn := self._rng.randrange(self._seen[kind])) < SHAPE_SAMPLES_MAX:
            self.samples[places[drawn]] = sample

    def _heard(self, wanted_steps: int, streams: Sequence[TokenStream]) -> bool:
        self._check()
        # A stream that ended makes the wanted batch impossible; the next rung fills it up again.
        return self._decoded[len(streams)] >= wanted_steps or any(one.ended for one in streams)

    def _check(self) -> None:
        if self._listener is not None and self._listener.done():
            error = self._listener.exception()
            raise error if isinstance(error, NodeError) else NodeError("the reports ended")

    async def _listen(self, reports: AsyncIterator[NodeReport]) -> None:
        async for report in reports:
            self.take(report)


class GapSteps:
    """Steps read off the token gaps. steps_missed: prompts whose steps could not be told apart."""

    def __init__(self, clock: Clock, limits: EngineLimits) -> None:
        self.recording = False
        self.samples: list[Sample] = []
        self.steps_missed = 0
        self._clock = clock
        self._limits = limits

    async def decode(self, streams: Sequence[TokenStream]) -> None:
        if not streams:
            return
        await tokens_more(self._clock, streams, DECODE_GAPS + 2)
        if self.recording and not any(stream.ended for stream in streams):
            # Not the newest token: some streams may not have got theirs of that step yet.
            end_s = streams[0].times_s[-2]
            self.samples += gaps.decode_samples(streams, end_s, DECODE_GAPS)

    async def prompted(self, prompt: TokenStream, streams: Sequence[TokenStream]) -> None:
        if not (self.recording and streams):
            return
        # Undisturbed steps after the prompt's, which also keep it apart from the next one.
        await tokens_more(self._clock, streams, gaps.QUIET_STEPS + 2)
        samples = gaps.prompt_samples(prompt, streams, self._limits)
        if samples is None:
            self.steps_missed += 1
        else:
            self.samples += samples

    async def idle(self) -> None:
        await self._clock.sleep_until(self._clock.now_s() + IDLE_S)


async def tokens_more(clock: Clock, streams: Sequence[TokenStream], tokens: int) -> None:
    """Return once every stream has got so many more tokens, or one of them has ended."""
    wanted = [len(stream.times_s) + tokens for stream in streams]

    def came() -> bool:
        return any(stream.ended for stream in streams) or all(
            len(stream.times_s) >= count for stream, count in zip(streams, wanted, strict=True)
        )

    await until(clock, came, "tokens of the streams")


async def until(clock: Clock, holds: Callable[[], bool], what: str) -> None:
    """Return once the condition holds. Raises NodeError after two minutes without it."""
    end_s = clock.now_s() + SILENCE_S
    while not holds():
        if clock.now_s() >= end_s:
            raise NodeError(f"waited {SILENCE_S:g} s in vain for {what}")
        await clock.sleep_until(clock.now_s() + POLL_S)


def _sample(step: StepTaken) -> Sample:
    try:
        return Sample(
            decode_seqs=step.decode_seqs,
            kv_tokens=step.kv_tokens,
            prefill_tokens=step.prefill_tokens,
            prefill_token_pairs=step.prefill_token_pairs,
            step_s=step.actual_s,
            cpu_s=step.cpu_s,
        )
    except ValueError as error:
        raise NodeError(f"the engine reports an impossible step {step}: {error}") from None
