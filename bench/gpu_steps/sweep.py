"""Which steps are timed: batches, contexts and chunks, as far as memory holds them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpu_steps.shapes import Shape
from spillway.core.latency import token_pairs

# Batch sizes for which vLLM captures CUDA graphs; a batch between two of them runs as the larger.
CAPTURED_SEQS = (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16))


@dataclass(frozen=True)
class Cell:
    """One step. context_tokens: of each decoding stream; chunk_context_tokens: before the chunk."""

    decode_seqs: int
    context_tokens: int
    chunk_tokens: int = 0
    chunk_context_tokens: int = 0

    @property
    def kv_tokens(self) -> int:
        """Return the KV tokens of the decoding streams."""
        return self.decode_seqs * self.context_tokens

    @property
    def resident_tokens(self) -> int:
        """Return the KV tokens that the step reads or writes."""
        return self.kv_tokens + self.chunk_context_tokens + self.chunk_tokens

    @property
    def pairs(self) -> float:
        """Return the (token, attended token) pairs of the chunk."""
        return token_pairs(self.chunk_tokens, self.chunk_context_tokens)


@dataclass(frozen=True)
class Sweep:
    """The values that are combined."""

    decode_seqs: Sequence[int]
    context_tokens: Sequence[int]
    mixed_seqs: Sequence[int]
    mixed_context_tokens: Sequence[int]
    chunk_tokens: Sequence[int]
    chunk_context_tokens: Sequence[int]


FULL = Sweep(
    decode_seqs=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    context_tokens=(128, 512, 2048, 8192, 16384),
    mixed_seqs=(0, 8, 32, 128),
    mixed_context_tokens=(512, 4096),
    chunk_tokens=(128, 256, 512, 1024, 2048, 4096),
    chunk_context_tokens=(0, 4096, 16384),
)
SMALL = Sweep(
    decode_seqs=(1, 3, 8, 16),
    context_tokens=(64, 256, 512),
    mixed_seqs=(0, 8),
    mixed_context_tokens=(256,),
    chunk_tokens=(16, 64, 256),
    chunk_context_tokens=(0, 512),
)


def cells(sweep: Sweep, shape: Shape, kv_tokens_max: int) -> list[Cell]:
    """Return the steps to time: decode alone, then mixed ones, without those that do not fit."""
    found = list(dict.fromkeys(_all(sweep)))
    return [one for one in found if _fits(one, shape, kv_tokens_max)]


def _all(sweep: Sweep) -> Iterator[Cell]:
    for seqs in sweep.decode_seqs:
        for context in sweep.context_tokens:
            yield Cell(seqs, context)
    for seqs in sweep.mixed_seqs:
        for context in sweep.mixed_context_tokens if seqs else (0,):
            for chunk in sweep.chunk_tokens:
                for before in sweep.chunk_context_tokens:
                    yield Cell(seqs, context, chunk, before)


def _fits(cell: Cell, shape: Shape, kv_tokens_max: int) -> bool:
    longest = max(cell.context_tokens, cell.chunk_context_tokens + cell.chunk_tokens)
    return cell.resident_tokens <= kv_tokens_max and longest <= shape.context_tokens_max


def captured_seqs(decode_seqs: int) -> int:
    """Return the batch that runs where CUDA graphs are captured for fixed sizes only.

    A batch above the largest of them runs without a graph, as it is.
    """
    at = bisect_left(CAPTURED_SEQS, decode_seqs)
    return CAPTURED_SEQS[at] if at < len(CAPTURED_SEQS) else decode_seqs


def kv_room_tokens(shape: Shape, memory_bytes: float, layers: int) -> int:
    """Return the KV tokens that memory holds beside the weights, of the layers that are run."""
    share = layers / shape.layers
    weights_bytes = shape.weights() * shape.value_bytes * share
    left_bytes = max(0.0, 0.8 * memory_bytes - weights_bytes)
    return int(left_bytes / (shape.kv_bytes_per_token * share))
