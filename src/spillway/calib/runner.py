"""Drives one engine through the probe plan and collects a sample of each step.

What a step took is for others to find out (`steps.py`); here it is decided what the engine is given
to do, one request after the other, and that nothing is left of it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from spillway.calib.client import EngineClient, TokenStream
from spillway.calib.probes import Ladder, Rung, make_plan, warm_up
from spillway.calib.samples import EngineLimits, Sample
from spillway.calib.steps import GapSteps, ReportedSteps, Steps, until
from spillway.clock import Clock
from spillway.core.errors import NodeError

START_STEPS = 100  # steps of the others, beyond its prefill, after which a stream should have begun
START_WAIT_S = 2.0  # and time, for an engine so fast that these steps are nothing
REFILLS_MAX = 3

Progress = Callable[[int, int, str], None]


class Measured(NamedTuple):
    """What came of driving an engine. notes: what a reader of the samples should know."""

    samples: list[Sample]
    rungs_done: int
    rungs_planned: int
    steps_missed: int
    notes: tuple[str, ...]


class Drive:
    """One run over a plan. late: the time was up before the plan's end."""

    def __init__(
        self, client: EngineClient, limits: EngineLimits, steps: Steps, clock: Clock, end_s: float
    ) -> None:
        self.notes: list[str] = []
        self.rungs_done = 0
        self.late = False
        self._client = client
        self._chunk_tokens = limits.chunk_tokens_max
        self._streams_max = limits.streams_max
        self._steps = steps
        self._clock = clock
        self._end_s = end_s

    async def climb(self, ladder: Ladder, done: Callable[[Rung], None]) -> None:
        """Drive the engine up one ladder, or as far as the time goes, and leave it idle."""
        streams: list[TokenStream] = []
        for rung in ladder.rungs:
            if rung.decode_seqs > self._streams_max or self._time_is_up():
                break
            await self._fill(streams, ladder, rung.decode_seqs)
            if streams:
                await self._steps.decode(streams)
            for prompt_tokens in rung.prompts_tokens:
                if self._time_is_up():
                    break
                await self._fill(streams, ladder, rung.decode_seqs)
                await self._ask(prompt_tokens, streams)
            else:
                done(rung)
        for stream in streams:
            self._client.stop(stream)
        await self._steps.idle()

    async def _ask(self, prompt_tokens: int, streams: Sequence[TokenStream]) -> None:
        prompt = self._client.start(prompt_tokens, 1)
        await until(self._clock, lambda: prompt.ended, "the answer to a prompt")
        if prompt.error:
            raise NodeError(f"a prompt of {prompt_tokens} tokens failed: {prompt.error}")
        await self._steps.prompted(prompt, streams)

    async def _fill(self, streams: list[TokenStream], ladder: Ladder, decode_seqs: int) -> None:
        """See to it that `decode_seqs` streams run, opening anew those that came to their end."""
        for _ in range(REFILLS_MAX):
            for stream in streams:
                if stream.error:
                    raise NodeError(f"a stream failed: {stream.error}")
            streams[:] = [stream for stream in streams if not stream.ended]
            missing = min(decode_seqs, self._streams_max) - len(streams)
            if missing <= 0:
                return
            streams += [
                self._client.start(ladder.context_tokens, ladder.output_tokens)
                for _ in range(missing)
            ]
            await self._started(streams, ladder)

    async def _started(self, streams: list[TokenStream], ladder: Ladder) -> None:
        """Wait for the first tokens; leave the streams for which the engine has no place."""
        patience = START_STEPS + 4 * (ladder.context_tokens // self._chunk_tokens + 1)
        begun, since_tokens, since_s = 0, 0, self._clock.now_s()

        def settled() -> bool:
            nonlocal begun, since_tokens, since_s
            now = [stream for stream in streams if stream.times_s or stream.ended]
            most_tokens = max((len(stream.times_s) for stream in now), default=0)
            if len(now) != begun:
                begun, since_tokens, since_s = len(now), most_tokens, self._clock.now_s()
            stuck = most_tokens - since_tokens > patience
            return begun == len(streams) or (stuck and self._clock.now_s() > since_s + START_WAIT_S)

        await until(self._clock, settled, "the first tokens of the streams")
        waiting = [stream for stream in streams if not (stream.times_s or stream.ended)]
        if waiting:
            for stream in waiting:
                self._client.stop(stream)
            streams[:] = [stream for stream in streams if stream not in waiting]
            self._streams_max = len(streams)
            self.notes.append(
                f"the engine ran no more than {len(streams)} streams at once (--max-num-seqs, or "
                "its KV room): larger batches were not measured"
            )

    def _time_is_up(self) -> bool:
        self.late = self.late or self._clock.now_s() >= self._end_s
        return self.late


async def measure(
    client: EngineClient,
    limits: EngineLimits,
    clock: Clock,
    *,
    from_reports: bool,
    quick: bool,
    time_limit_s: float,
    rng: Random,
    progress: Progress = lambda done, total, detail: None,
) -> Measured:
    """Drive the engine and return its samples. rng: draws which of many repeats are kept.

    Raises NodeError when the engine breaks or falls silent.
    """
    if from_reports:
        async with ReportedSteps(clock, rng).listening(client) as steps:
            return await _measure(client, limits, clock, steps, quick, time_limit_s, progress)
    gap_steps = GapSteps(clock, limits)
    return await _measure(client, limits, clock, gap_steps, quick, time_limit_s, progress)


async def _measure(
    client: EngineClient,
    limits: EngineLimits,
    clock: Clock,
    steps: Steps,
    quick: bool,
    time_limit_s: float,
    progress: Progress,
) -> Measured:
    plan = make_plan(limits, quick=quick, idle=isinstance(steps, ReportedSteps))
    planned = sum(len(ladder.rungs) for ladder in plan)
    drive = Drive(client, limits, steps, clock, clock.now_s() + time_limit_s)
    progress(0, planned, "warming up")
    await drive.climb(warm_up(limits), lambda rung: None)
    steps.recording = True
    for ladder in plan:
        context = f"{ladder.context_tokens:,} tokens of context"

        def done(rung: Rung, context: str = context) -> None:
            drive.rungs_done += 1
            progress(drive.rungs_done, planned, f"{rung.decode_seqs} streams at {context}")

        await drive.climb(ladder, done)
        if drive.late:
            drive.notes.append(
                f"only {drive.rungs_done} of {planned} rungs fitted into {time_limit_s:g} s; "
                "--time-limit-s gives more"
            )
            break
    return Measured(
        steps.samples, drive.rungs_done, planned, steps.steps_missed, tuple(drive.notes)
    )
