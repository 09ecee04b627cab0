"""Step times from token gaps: exact where tokens are prompt, and near where they come late."""

from __future__ import annotations

from itertools import accumulate
from random import Random

import pytest

from builders import make_profile
from calibsamples import make_limits
from spillway.calib.client import TokenStream
from spillway.calib.gaps import (
    GROUP_STEPS,
    QUIET_STEPS,
    boundaries,
    chunk_tokens,
    decode_samples,
    prompt_samples,
)
from spillway.calib.samples import EngineLimits, Sample
from spillway.core.latency import step_s, token_pairs

PROFILE = make_profile()
STREAMS, CONTEXT, CHUNK = 4, 1000, 512
QUIET_BEFORE, QUIET_AFTER = 20, 20
LIMITS = make_limits(chunk_tokens_max=CHUNK)


class Engine:
    """A batch of streams, of which each step is as long as PROFILE says, and one prompt."""

    def __init__(self, prompt_tokens: int, *, late_s: float = 0.0, limits: EngineLimits = LIMITS):
        rng = Random(1)
        self.streams = [TokenStream(CONTEXT + at, 10_000, 0.0) for at in range(STREAMS)]
        self.chunks = chunk_tokens(prompt_tokens, STREAMS, limits)
        self.durations_s = []
        kv_tokens, done_tokens = sum(one.prompt_tokens for one in self.streams) + STREAMS, 0
        for chunk in [0] * QUIET_BEFORE + self.chunks + [0] * QUIET_AFTER:
            self.durations_s.append(step_s(PROFILE, STREAMS, kv_tokens, chunk, done_tokens))
            done_tokens += chunk
            kv_tokens += STREAMS
        ends_s = [1.0, *accumulate(self.durations_s, initial=1.0)][1:]
        self.prompt = TokenStream(prompt_tokens, 1, 1.0)
        for at, end_s in enumerate(ends_s):
            # All tokens of a step are read together, never early and now and then late.
            read_s = end_s + (rng.random() * late_s if rng.random() < 0.5 else 0.0)
            for stream in self.streams:
                stream.times_s.append(read_s)
            if at == QUIET_BEFORE + len(self.chunks):
                self.prompt.times_s.append(read_s + 1e-4)

    def mixed_s(self) -> list[float]:
        return self.durations_s[QUIET_BEFORE : QUIET_BEFORE + len(self.chunks)]


def errors(samples: list[Sample]) -> list[float]:
    found = []
    for one in samples:
        context = 0
        if one.prefill_tokens:
            pairs = one.prefill_token_pairs / one.prefill_tokens
            context = round(pairs - (one.prefill_tokens + 1) / 2)
        true_s = step_s(PROFILE, one.decode_seqs, one.kv_tokens, one.prefill_tokens, context)
        found.append(abs(one.step_s / true_s - 1))
    return found


def test_decode_steps_come_with_the_kv_they_read() -> None:
    engine = Engine(100)
    end_s = engine.streams[0].times_s[QUIET_BEFORE]
    samples = decode_samples(engine.streams, end_s, 3 * GROUP_STEPS)
    assert len(samples) == 3
    assert all(one.decode_seqs == STREAMS and not one.prefill_tokens for one in samples)
    assert max(errors(samples)) < 1e-4
    assert samples[1].kv_tokens - samples[0].kv_tokens == GROUP_STEPS * STREAMS


@pytest.mark.parametrize("prompt_tokens", [16, CHUNK, CHUNK + 40, 3 * CHUNK + 100])
def test_mixed_steps_are_found_with_their_chunks(prompt_tokens: int) -> None:
    engine = Engine(prompt_tokens)
    samples = prompt_samples(engine.prompt, engine.streams, LIMITS)
    assert samples is not None
    assert [one.prefill_tokens for one in samples] == engine.chunks
    assert sum(one.prefill_token_pairs for one in samples) == token_pairs(prompt_tokens, 0)
    assert [one.step_s for one in samples] == pytest.approx(engine.mixed_s(), rel=1e-3)
    assert max(errors(samples)) < 1e-3


def test_late_tokens_are_corrected_by_the_quiet_steps_around() -> None:
    engine = Engine(64, late_s=4e-3)
    samples = prompt_samples(engine.prompt, engine.streams, LIMITS)
    assert samples is not None
    at = QUIET_BEFORE + 1
    raw_s = engine.streams[0].times_s[at] - engine.streams[0].times_s[at - 1]
    (true_s,) = engine.mixed_s()
    assert abs(samples[0].step_s - true_s) < 0.5e-3 < abs(raw_s - true_s)
    decodes = decode_samples(engine.streams, engine.streams[0].times_s[20], 4 * GROUP_STEPS)
    assert max(errors(decodes)) < 0.1


def test_a_chunk_that_the_engine_does_not_use_is_noticed() -> None:
    engine = Engine(2048)
    told = make_limits(chunk_tokens_max=1024)  # two steps are expected, four were taken
    assert prompt_samples(engine.prompt, engine.streams, told) is None


def test_decodes_take_their_tokens_out_of_vllms_step_budget() -> None:
    limits = make_limits(chunk_tokens_max=CHUNK, chunk_counts_decodes=True)
    assert chunk_tokens(CHUNK, STREAMS, limits) == [CHUNK - STREAMS, STREAMS]
    assert chunk_tokens(CHUNK, STREAMS, LIMITS) == [CHUNK]
    engine = Engine(CHUNK, limits=limits)
    samples = prompt_samples(engine.prompt, engine.streams, limits)
    assert samples is not None
    assert [one.prefill_tokens for one in samples] == [CHUNK - STREAMS, STREAMS]


def test_nothing_is_made_up_where_tokens_are_missing() -> None:
    engine = Engine(64)
    ended_s = engine.prompt.times_s[0]
    young = TokenStream(10, 100, 0.0)
    young.times_s.extend([ended_s])
    assert prompt_samples(engine.prompt, [*engine.streams, young], LIMITS) is None
    assert prompt_samples(TokenStream(64, 1, 0.0), engine.streams, LIMITS) is None
    assert boundaries([], 1.0, 1) is None
    for stream in engine.streams:  # the quiet steps after the prompt never came
        del stream.times_s[QUIET_BEFORE + 1 + QUIET_STEPS :]
    assert prompt_samples(engine.prompt, engine.streams, LIMITS) is None
    assert decode_samples(engine.streams, 1.0, GROUP_STEPS) == []
