"""The probe plan: which batches an engine is driven through to learn what its steps cost.

A *ladder* holds streams of one context and adds more at each *rung*, so that a batch of 64 costs 64
requests in all and not one set per size. At each rung a few prompts are sent beside the streams.
A prompt of k full chunks and a rest gives k + 1 mixed steps: the full chunk at growing contexts,
and the rest at the end of them. So a few short requests cover batch, context, chunk and chunk
context.
"""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

from spillway.calib.samples import EngineLimits
from spillway.core.errors import ConfigError

QUICK_CONTEXTS_TOKENS = (128, 4096)
FULL_CONTEXTS_TOKENS = (1024, 8192, 256, 2048, 16384, 512)
QUICK_RAMP_TOKENS_MAX = 131_072  # prompt tokens of all streams of one ladder
CHUNK_TOKENS_MIN = 16
SIZE_GROWTH = sqrt(2.0)
DEEP_CHUNKS_MAX = 8
SHORTEST_REPEATS = 3
KV_USED_FRAC_MAX = 0.85
OUTPUT_TOKENS = 1024  # of a stream; a plan needs a few hundred, a slow client a few more
OUTPUT_TOKENS_MIN = 128
KV_SHARES = 64  # a stream may grow by this share of the KV room, so that small engines take many
CONTEXT_TOKENS_MIN = 64


class Rung(NamedTuple):
    """`decode_seqs` streams at once, and the lengths of prompts sent beside them, one by one."""

    decode_seqs: int
    prompts_tokens: tuple[int, ...]


class Ladder(NamedTuple):
    """Rungs of rising batch size over streams that start with `context_tokens` of prompt.

    output_tokens: how far a stream runs at most before it is opened anew.
    """

    context_tokens: int
    output_tokens: int
    rungs: tuple[Rung, ...]


def warm_up(limits: EngineLimits) -> Ladder:
    """Return the ladder that is driven first and not recorded: it fills caches and compiles."""
    context_tokens, output_tokens = _stream_tokens(limits, CONTEXT_TOKENS_MIN)
    chunk = _longest(limits, 0, limits.chunk_tokens_max)
    return Ladder(
        context_tokens,
        output_tokens,
        (Rung(0, (chunk,)), Rung(1, (chunk, CHUNK_TOKENS_MIN)), Rung(2, (chunk // 2 + 1,))),
    )


def make_plan(limits: EngineLimits, *, quick: bool, idle: bool = True) -> tuple[Ladder, ...]:
    """Return the ladders to drive, the most telling first: a plan may be cut short at any rung.

    quick: two contexts and every second batch size. The full plan starts with the quick one.
    idle: also send prompts to an engine without streams.

    Raises ConfigError when the limits leave no room for two batch sizes.
    """
    ladders = [
        _ladder(limits, context, at, quick=True, idle=idle and at == 0)
        for at, context in enumerate(_contexts(limits, QUICK_CONTEXTS_TOKENS))
    ]
    if not quick:
        ladders += [
            _ladder(limits, context, at, quick=False, idle=idle and at == 0)
            for at, context in enumerate(_contexts(limits, FULL_CONTEXTS_TOKENS))
        ]
    ladders = [ladder for ladder in ladders if ladder.rungs]
    sizes = {rung.decode_seqs for ladder in ladders for rung in ladder.rungs} - {0}
    if len(sizes) < 2:
        raise ConfigError(
            f"the engine has room for {limits.kv_capacity_tokens:,} KV tokens, "
            f"{limits.context_tokens_max:,} tokens a request and {limits.streams_max} streams: too "
            "little to learn what a batch costs; give it more, or correct --kv-capacity-tokens "
            "and --streams"
        )
    return tuple(ladders)


def _ladder(
    limits: EngineLimits, wanted_tokens: int, at: int, *, quick: bool, idle: bool
) -> Ladder:
    context_tokens, output_tokens = _stream_tokens(limits, wanted_tokens)
    sizes = chunk_sizes(limits.chunk_tokens_max)
    rungs: list[Rung] = []
    for decode_seqs in _batch_sizes(limits, context_tokens, output_tokens, quick, idle):
        kept_tokens = decode_seqs * (context_tokens + output_tokens)
        # Neighbouring rungs take turns at the sizes; every third prompt has a full chunk before.
        prompts = [
            _longest(limits, kept_tokens, tokens + (which % 3 == 2) * limits.chunk_tokens_max)
            for which, tokens in enumerate(sizes[(len(rungs) + at) % 2 :: 2])
        ]
        if len(rungs) == 1:
            prompts.append(_longest(limits, kept_tokens, DEEP_CHUNKS_MAX * limits.chunk_tokens_max))
        unique = tuple(dict.fromkeys(one for one in prompts if one >= CHUNK_TOKENS_MIN))
        # The shortest costs least to repeat, and repeats show how steady the engine is.
        again = unique[:1] * SHORTEST_REPEATS if quick else unique + unique[:1] * SHORTEST_REPEATS
        rungs.append(Rung(decode_seqs, unique + again))
    return Ladder(context_tokens, output_tokens, tuple(rungs))


def chunk_sizes(chunk_tokens_max: int) -> tuple[int, ...]:
    """Return chunk sizes from small to the largest, evenly on a logarithmic scale."""
    sizes, tokens = [], float(min(CHUNK_TOKENS_MIN, chunk_tokens_max))
    while tokens < chunk_tokens_max:
        sizes.append(round(tokens))
        tokens *= SIZE_GROWTH
    return (*sizes, chunk_tokens_max)


def _contexts(limits: EngineLimits, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the wanted contexts that fit, with half of the longest one for those that do not."""
    longest = max(
        CONTEXT_TOKENS_MIN, min(limits.context_tokens_max, limits.kv_capacity_tokens) // 2
    )
    return tuple(dict.fromkeys(min(tokens, longest) for tokens in wanted))


def _stream_tokens(limits: EngineLimits, context_tokens: int) -> tuple[int, int]:
    """Return the prompt and output length of a stream at a context."""
    room_tokens = limits.context_tokens_max - 1
    growth_tokens = max(OUTPUT_TOKENS_MIN, limits.kv_capacity_tokens // KV_SHARES)
    output_tokens = max(1, min(OUTPUT_TOKENS, growth_tokens, room_tokens - 1))
    return max(1, min(context_tokens, room_tokens - output_tokens)), output_tokens


def _batch_sizes(
    limits: EngineLimits, context_tokens: int, output_tokens: int, quick: bool, idle: bool
) -> list[int]:
    """Return 1, 2, 4, ... (quick: 1, 4, 16, ...) as far as streams and KV room go."""
    room_tokens = KV_USED_FRAC_MAX * limits.kv_capacity_tokens - CHUNK_TOKENS_MIN
    most = min(limits.streams_max, int(room_tokens / (context_tokens + output_tokens)))
    if quick:
        most = min(most, max(1, QUICK_RAMP_TOKENS_MAX // context_tokens))
    sizes, size = [0] if idle else [], 1
    while size < most:
        sizes.append(size)
        size *= 4 if quick else 2
    return [*sizes, most] if most else sizes


def _longest(limits: EngineLimits, kept_tokens: int, wanted_tokens: int) -> int:
    """Return the prompt length nearest to the wanted one that fits beside what is kept."""
    room_tokens = int(KV_USED_FRAC_MAX * limits.kv_capacity_tokens) - kept_tokens
    return max(0, min(wanted_tokens, limits.context_tokens_max - 2, room_tokens))
