"""Step times of an engine that does not tell them: from the token gaps of its streams.

Every step gives each running stream one token, so the gap between two tokens of a stream is the
step between them. A prompt sent beside the streams yields its first token in its last step; the
steps before that one, as many as its length needs at the engine's fixed chunk, are its mixed steps.

A token is never read before its step has ended but often a little later. A late one makes one gap
longer and the next one shorter, so where steps are alike their times are taken over several, and
the bounds of mixed steps are corrected by the quiet steps around them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from spillway.calib.client import TokenStream
from spillway.calib.samples import EngineLimits, Sample
from spillway.core.latency import token_pairs

GROUP_STEPS = 4  # decode steps that make one sample
MIXED_BEFORE_FRAC = 0.75  # a step before the mixed ones this much longer is one of them
QUIET_STEPS = 6  # watched on either side of mixed ones


class Boundaries(NamedTuple):
    """Successive ends of steps as the streams saw them, and the KV held before each such step."""

    times_s: list[float]
    kv_tokens: list[int]


def boundaries(
    streams: Sequence[TokenStream], end_s: float, steps_back: int, steps_ahead: int = 0
) -> Boundaries | None:
    """Return the end of the step that ended at `end_s`, and of so many steps before and after it.

    None when a stream had not begun by then or has not come that far.
    """
    ends = [_nearest(stream, end_s) for stream in streams]
    lengths = [len(stream.times_s) for stream in streams]
    if not ends or min(ends) < steps_back:
        return None
    if any(end + steps_ahead >= length for end, length in zip(ends, lengths, strict=True)):
        return None
    found = Boundaries([], [])
    for offset in range(-steps_back, steps_ahead + 1):
        at = [end + offset for end in ends]
        arrivals_s = [stream.times_s[which] for stream, which in zip(streams, at, strict=True)]
        found.times_s.append(median(arrivals_s))
        # A stream's token number i (from 0) is computed over its prompt and i generated tokens.
        found.kv_tokens.append(sum(at) + sum(stream.prompt_tokens for stream in streams))
    return found


def decode_samples(streams: Sequence[TokenStream], end_s: float, steps: int) -> list[Sample]:
    """Return samples of the `steps` steps up to `end_s`, in which nothing but the streams ran.

    Each is the mean of GROUP_STEPS steps; the law is linear in the KV that grows meanwhile.
    """
    found = boundaries(streams, end_s, steps)
    if found is None:
        return []
    samples = []
    for start in range(0, steps - GROUP_STEPS + 1, GROUP_STEPS):
        stop = start + GROUP_STEPS
        step_s = (found.times_s[stop] - found.times_s[start]) / GROUP_STEPS
        kv_tokens = round(sum(found.kv_tokens[start + 1 : stop + 1]) / GROUP_STEPS)
        if step_s > 0.0:
            samples.append(Sample(decode_seqs=len(streams), kv_tokens=kv_tokens, step_s=step_s))
    return samples


def prompt_samples(
    prompt: TokenStream, streams: Sequence[TokenStream], limits: EngineLimits
) -> list[Sample] | None:
    """Return a sample for each mixed step of a prompt that was sent beside `streams`.

    Needs QUIET_STEPS before them and after them. None when the gaps do not show the steps that the
    engine's chunk should give: a stream came or went, or the step before is as long as they are.
    """
    seqs = len(streams)
    chunks = chunk_tokens(prompt.prompt_tokens, seqs, limits)
    mixed = len(chunks)
    found = None
    if prompt.times_s:
        found = boundaries(streams, prompt.times_s[0], mixed + QUIET_STEPS, QUIET_STEPS)
    if found is None:
        return None
    before_s = found.times_s[: QUIET_STEPS + 1]
    after_s = found.times_s[-QUIET_STEPS - 1 :]
    start_s, end_s = _start_s(before_s), _end_s(after_s)
    ends_s = [start_s, *found.times_s[QUIET_STEPS + 1 : QUIET_STEPS + mixed], end_s]
    kv_tokens = found.kv_tokens[QUIET_STEPS + 1 :]
    quiet_s = _gap_s(before_s)
    longer_s = (ends_s[-1] - start_s) / mixed - quiet_s
    if before_s[-1] - start_s > MIXED_BEFORE_FRAC * max(longer_s, quiet_s):
        return None
    samples, done_tokens = [], 0
    for at, tokens in enumerate(chunks):
        step_s = ends_s[at + 1] - ends_s[at]
        pairs = token_pairs(tokens, done_tokens)
        done_tokens += tokens
        if step_s > 0.0:
            samples.append(
                Sample(
                    decode_seqs=seqs,
                    kv_tokens=kv_tokens[at],
                    prefill_tokens=tokens,
                    prefill_token_pairs=pairs,
                    step_s=step_s,
                )
            )
    return samples


def chunk_tokens(prompt_tokens: int, decode_seqs: int, limits: EngineLimits) -> list[int]:
    """Return the chunks in which an engine with a fixed step budget computes a prompt."""
    taken_tokens = decode_seqs if limits.chunk_counts_decodes else 0
    chunk = max(1, limits.chunk_tokens_max - taken_tokens)
    full, rest = divmod(prompt_tokens, chunk)
    return [chunk] * full + [rest] * bool(rest)


def _gap_s(times_s: Sequence[float]) -> float:
    return median(later_s - earlier_s for earlier_s, later_s in pairwise(times_s))


def _start_s(quiet_s: Sequence[float]) -> float:
    """Return when the last of these steps ended, by the least late of them."""
    gap_s = _gap_s(quiet_s)
    return min(time_s + back * gap_s for back, time_s in enumerate(reversed(quiet_s)))


def _end_s(quiet_s: Sequence[float]) -> float:
    """Return when the step before these quiet ones ended, by the least late of all."""
    gap_s = _gap_s(quiet_s)
    return min(time_s - ahead * gap_s for ahead, time_s in enumerate(quiet_s))


def _nearest(stream: TokenStream, at_s: float) -> int:
    """Return the index of the token that came nearest to a moment."""
    times_s = stream.times_s
    at = bisect_left(times_s, at_s)
    if at == len(times_s) or (at and at_s - times_s[at - 1] <= times_s[at] - at_s):
        return at - 1
    return at
