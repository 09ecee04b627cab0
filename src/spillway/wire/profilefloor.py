"""Whether a profile is slower than its hardware at its very best, as anything real must be.

Published coefficients have been several times faster than the tensor cores they were for; no
finding about a scheduler survives that. The floors: a token's multiplications at peak FLOP/s, an
attended token's at the same, the weights and the KV cache once through memory at peak bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from spillway.core.latency import LatencyProfile, step_s
from spillway.wire.gpus import Gpu
from spillway.wire.modelshape import (
    ModelShape,
    kv_bytes_per_token,
    pair_flops,
    step_params,
    token_params,
)

VALUE_BYTES = 2  # bfloat16 and float16
PROBES_TOKENS = (1, 16, 64, 256, 1024, 4096, 16_384)


class Floor(NamedTuple):
    """The least seconds per step, scheduled token, resident KV token and token pair."""

    step_s: float
    token_s: float
    kv_token_s: float
    token_pair_s: float


def floor_of(shape: ModelShape, gpu: Gpu, gpu_count: int) -> Floor:
    """Return the floors for a model in 16-bit weights on that many GPUs.

    Tensor parallelism divides all of it, but for the KV reads of latent attention: every GPU holds
    the whole latent vectors.
    """
    flops_per_s = gpu.flops_per_s * gpu_count
    bytes_per_s = gpu.memory_bytes_per_s * gpu_count
    kv_bytes_per_s = gpu.memory_bytes_per_s if shape.kv_latent_width else bytes_per_s
    return Floor(
        step_s=step_params(shape) * VALUE_BYTES / bytes_per_s,
        token_s=2 * token_params(shape) / flops_per_s,
        kv_token_s=kv_bytes_per_token(shape, VALUE_BYTES) / kv_bytes_per_s,
        token_pair_s=pair_flops(shape) / flops_per_s,
    )


def floor_faults(profile: LatencyProfile, floor: Floor) -> Iterator[str]:
    """Yield what of the profile is faster than the floor, a sentence each."""
    if profile.hinge_slope_s[-1] < floor.token_s:
        yield _fault("the last slope of token_s", profile.hinge_slope_s[-1], floor.token_s)
    if profile.kv_token_s < floor.kv_token_s:
        yield _fault("kv_token_s", profile.kv_token_s, floor.kv_token_s)
    if profile.token_pair_s < floor.token_pair_s:
        yield _fault("token_pair_s", profile.token_pair_s, floor.token_pair_s)
    for tokens in sorted({*PROBES_TOKENS, *profile.token_hinges[1:]}):
        least_s = max(floor.step_s, floor.token_s * tokens)
        took_s = step_s(profile, 0, 0, tokens)
        if took_s < least_s:
            yield _fault(f"a step of {tokens} tokens", took_s, least_s)


def _fault(what: str, value_s: float, floor_s: float) -> str:
    return f"{what} is {value_s:.3g} s, faster than the hardware at its peak ({floor_s:.3g} s)"
