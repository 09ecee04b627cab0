"""What the GPUs of the built-in profiles can do at most, from their makers' data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Gpu(NamedTuple):
    """flops_per_s: dense, in bfloat16.   memory_bytes_per_s, memory_bytes: of its own memory."""

    flops_per_s: float
    memory_bytes_per_s: float
    memory_bytes: float


# Names as in a profile's `provenance.gpu`.
GPUS: Mapping[str, Gpu] = {
    "NVIDIA A100-SXM4-80GB": Gpu(312e12, 2.039e12, 80e9),
    "NVIDIA H100-SXM-80GB-HBM3": Gpu(989.5e12, 3.35e12, 80e9),
    "NVIDIA H200-SXM-141GB": Gpu(989.5e12, 4.8e12, 141e9),
}
