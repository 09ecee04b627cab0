"""Write the built-in latency profiles from published step-time grids and first principles.

    .venv/bin/python scripts/builtin_profiles.py ../shared/profiles/kernel_table_grids.json

The file holds step times that AISimulate 0.13.0 (Apache-2.0) predicts from NVIDIA's kernel tables,
and laws fitted to them. A dense model's law is taken over as it is. A mixture of experts has a term
for the experts that a batch of n tokens has to read, 1 - (1 - active/experts)^n: it is
drawn through HINGES as straight pieces, and the errors are measured anew. Profiles that nobody
could measure are computed here and called `derived`.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from spillway.core.latency import LatencyProfile, step_s
from spillway.stats import percentile
from spillway.wire.gpus import GPUS
from spillway.wire.modelshape import (
    ModelShape,
    kv_bytes_per_token,
    pair_flops,
    step_params,
    total_params,
)
from spillway.wire.profile import (
    Coefficients,
    FitError,
    ProfileFile,
    Provenance,
    Validity,
    write_profile_file,
)

TARGET = Path(__file__).resolve().parents[1] / "src" / "spillway" / "wire" / "profiles"
DATE = "2026-11-21"
SOURCE = (
    "hinge law fitted to step-time estimates of AISimulate 0.13.0 "
    "(Apache-2.0; NVIDIA kernel tables)"
)
VALUE_BYTES = 2
KV_MEMORY_FRAC = 0.9  # of the GPU, for weights and KV
BLOCK_TOKENS = 16
SLOPE_DIGITS = 11  # after the point, of seconds per token
HINGES = (0, 1, 2, 4, 8, 16, 32, 64, 96)  # where the pieces of the expert term meet

# From the models' config.json.
SHAPES = {
    "Llama-3.1-8B": ModelShape(
        layer_count=32,
        hidden_width=4096,
        mlp_width=14_336,
        head_count=32,
        kv_head_count=8,
        head_width=128,
        vocab_count=128_256,
    ),
    "Llama-3.1-70B": ModelShape(
        layer_count=80,
        hidden_width=8192,
        mlp_width=28_672,
        head_count=64,
        kv_head_count=8,
        head_width=128,
        vocab_count=128_256,
    ),
    "Qwen3-8B": ModelShape(
        layer_count=36,
        hidden_width=4096,
        mlp_width=12_288,
        head_count=32,
        kv_head_count=8,
        head_width=128,
        vocab_count=151_936,
    ),
    "Qwen3-32B": ModelShape(
        layer_count=64,
        hidden_width=5120,
        mlp_width=25_600,
        head_count=64,
        kv_head_count=8,
        head_width=128,
        vocab_count=151_936,
    ),
    "Qwen3-30B-A3B": ModelShape(
        layer_count=48,
        hidden_width=2048,
        mlp_width=6144,
        head_count=32,
        kv_head_count=4,
        head_width=128,
        vocab_count=151_936,
        expert_count=128,
        expert_active_count=8,
        expert_width=768,
    ),
    "DeepSeek-V2-Lite": ModelShape(
        layer_count=27,
        hidden_width=2048,
        mlp_width=10_944,
        head_count=16,
        kv_head_count=16,
        head_width=128,
        vocab_count=102_400,
        expert_count=64,
        expert_active_count=6,
        expert_width=1408,
        shared_expert_count=2,
        dense_layer_count=1,
        kv_latent_width=512,
        rope_width=64,
    ),
}
GPU_NAMES = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100-SXM-80GB-HBM3",
    "h200": "NVIDIA H200-SXM-141GB",
}
ENGINE_VERSIONS = {"a100": "0.14.0", "h100": "0.24.0", "h200": "0.24.0"}


class Case(NamedTuple):
    """A model on a kind of GPU."""

    model: str
    gpu: str
    tensor_parallel: int

    @property
    def name(self) -> str:
        parallel = f"-tp{self.tensor_parallel}" if self.tensor_parallel > 1 else ""
        return f"{self.model.lower()}{parallel}-{self.gpu}"

    @property
    def grid_key(self) -> str:
        return f"{self.model}|{self.gpu}_sxm|tp{self.tensor_parallel}"


MEASURED = [
    Case(model, gpu, tensor_parallel)
    for model, tensor_parallel in (
        ("Llama-3.1-8B", 1),
        ("Qwen3-8B", 1),
        ("Qwen3-32B", 2),
        ("Llama-3.1-70B", 4),
        ("Qwen3-30B-A3B", 1),
    )
    for gpu in GPU_NAMES
]
DERIVED = [Case("DeepSeek-V2-Lite", gpu, 1) for gpu in GPU_NAMES]


def profiles(grids: dict[str, Any]) -> list[ProfileFile]:
    """Return every built-in profile."""
    return [_measured(case, grids) for case in MEASURED] + [_derived(case) for case in DERIVED]


# --- from the grids --------------------------------------------------------------------------


def _measured(case: Case, grids: dict[str, Any]) -> ProfileFile:
    found, grid = grids["hinge"][case.grid_key], grids["grid"][case.grid_key]
    base_ms, token_ms, second_ms, third_ms, kv_ms, pair_ms, *expert_ms = found["x"]
    hinges, slopes_s = (0,), (seconds(token_ms),)
    for hinge, added_ms in ((found["n1"], second_ms), (found["n2"], third_ms)):
        if added_ms:
            hinges, slopes_s = (*hinges, hinge), (*slopes_s, seconds(added_ms))
    if expert_ms:
        assert len(hinges) == 1, "a law with hinges and experts is not written here"
        hinges = HINGES
        slopes_s = _added(
            token_ms / 1e3,
            [expert_ms[0] / 1e3 * _coverage(SHAPES[case.model], hinge) for hinge in HINGES],
        )
    law = Coefficients(
        step_base_s=seconds(base_ms),
        token_hinges=hinges,
        token_s=slopes_s,
        kv_token_s=seconds(kv_ms),
        token_pair_s=seconds(pair_ms),
    )
    error = FitError(
        median_frac=round(found["med"], 4),
        p95_frac=round(found["p95"], 4),
        max_frac=round(found["mx"], 4),
    )
    notes = "GPU forward time only: host overhead (scheduling, sampling, HTTP) is not included."
    if expert_ms:
        error = _fit_error(law, grid)
        notes += (
            " The term for the experts that n tokens read, "
            f"{expert_ms[0]:g} ms x (1 - (1 - 8/128)^n), is drawn in straight pieces; fit_error "
            "is that of the pieces, on decode and prefill steps without mixed ones."
        )
    return _profile(case, case.name, law, notes, SOURCE, fit_error=error, validity=_range(grid))


def seconds(milliseconds: float) -> float:
    """Return milliseconds in seconds, with the six digits of the source."""
    return float(f"{milliseconds / 1e3:.6g}")


def _coverage(shape: ModelShape, tokens: int) -> float:
    """Return the expected share of experts that `tokens` tokens choose, each uniformly."""
    return 1.0 - (1.0 - shape.expert_active_count / shape.expert_count) ** tokens


def _added(token_s: float, values_s: list[float]) -> tuple[float, ...]:
    """Return the slopes to add at HINGES for a line of `token_s` and pieces through the values.

    Beyond the last hinge only the line remains.
    """
    pieces = zip(pairwise(HINGES), pairwise(values_s), strict=True)
    slopes_s = [token_s + (high - low) / (to - at) for (at, to), (low, high) in pieces]
    # Rounded before they are subtracted, so that the steps add up to the slopes they came from.
    slopes_s = [round(slope_s, SLOPE_DIGITS) for slope_s in (*slopes_s, token_s)]
    steps_s = (later - before for before, later in pairwise(slopes_s))
    return (slopes_s[0], *(round(added_s, SLOPE_DIGITS) for added_s in steps_s))


def _fit_error(law: Coefficients, grid: dict[str, Any]) -> FitError:
    profile = LatencyProfile(name="fit", kv_bytes_per_token=1, **_fields(law))
    errors_frac = sorted(
        [
            abs(step_s(profile, seqs, seqs * context) * 1e3 / step_ms - 1)
            for seqs, context, step_ms in grid["dec"]
        ]
        + [
            abs(step_s(profile, 0, 0, chunk, context) * 1e3 / step_ms - 1)
            for chunk, context, step_ms in grid["pre"]
        ]
    )
    return FitError(
        median_frac=round(median(errors_frac), 4),
        p95_frac=round(percentile(errors_frac, 0.95), 4),
        max_frac=round(errors_frac[-1], 4),
    )


def _fields(law: Coefficients) -> dict[str, Any]:
    return {name: getattr(law, name) for name in law.__struct_fields__}


def _range(grid: dict[str, Any]) -> Validity:
    return Validity(
        decode_seqs_max=max(seqs for seqs, _, _ in grid["dec"]),
        kv_tokens_max=max(seqs * context for seqs, context, _ in grid["dec"]),
        chunk_tokens_max=max(chunk for chunk, _, _ in grid["pre"]),
        context_tokens_max=max(context for _, context, _ in grid["pre"]),
    )


# --- from first principles -------------------------------------------------------------------

BANDWIDTH_FRAC, FLOPS_FRAC = 0.8, 0.4  # of the peaks, that good kernels reach
HOST_OVERHEAD_S = 0.0035  # launches and host of a small model with CUDA graphs: 2 to 5 ms
DERIVED_ERROR_FRAC = 0.4
# arXiv 2607.02043, Figure 1: on A100, chunks of up to 512 tokens add at most 30 ms to a decode
# step, one of 2048 over 200 ms. The slopes of a compute-bound step that give just that.
KNEE_TOKENS = 512
A100_SLOPES_S = (59e-6, 120e-6)


def _derived(case: Case) -> ProfileFile:
    """Every step reads the weights that its tokens choose, or computes, whichever takes longer."""
    shape, gpu = SHAPES[case.model], GPUS[GPU_NAMES[case.gpu]]
    bytes_per_s = BANDWIDTH_FRAC * gpu.memory_bytes_per_s
    routed_layers = shape.layer_count - shape.dense_layer_count
    expert_params = 3 * shape.hidden_width * shape.expert_width * routed_layers
    experts_s = expert_params * shape.expert_count * VALUE_BYTES / bytes_per_s
    fixed_params = step_params(shape) - expert_params * shape.expert_active_count
    scale = GPUS[GPU_NAMES["a100"]].flops_per_s / gpu.flops_per_s
    slope_s, knee_slope_s = (slope * scale for slope in A100_SLOPES_S)
    added = list(_added(0.0, [experts_s * _coverage(shape, hinge) for hinge in HINGES]))
    full_s = experts_s * _coverage(shape, HINGES[-1])
    bound = min(KNEE_TOKENS - 1, round(full_s / slope_s))  # from here on the step computes
    law = Coefficients(
        step_base_s=float(f"{fixed_params * VALUE_BYTES / bytes_per_s:.4g}"),
        token_hinges=(*HINGES, bound, KNEE_TOKENS),
        token_s=(*added, float(f"{slope_s:.4g}"), float(f"{knee_slope_s - slope_s:.4g}")),
        kv_token_s=float(f"{kv_bytes_per_token(shape) / bytes_per_s:.4g}"),
        token_pair_s=float(f"{pair_flops(shape) / (FLOPS_FRAC * gpu.flops_per_s):.4g}"),
    )
    notes = (
        f"Nobody measured this. Weights and KV at {BANDWIDTH_FRAC:.0%} of peak bandwidth, experts "
        f"by coverage, attention at {FLOPS_FRAC:.0%} of peak FLOP/s. The slopes of large steps are "
        "those of arXiv 2607.02043, Figure 1 (A100: 30 ms for a chunk of 512, over 200 ms for "
        "2048)"
        + ("." if scale == 1 else ", divided by the ratio of peak FLOP/s.")
        + " host_overhead_s is a guess between 2 and 5 ms."
    )
    return _profile(
        case,
        f"{case.name}-derived",
        law,
        notes,
        "derived from the model's configuration and the GPU's data sheet",
        host_overhead_s=HOST_OVERHEAD_S,
        derived_error_frac=DERIVED_ERROR_FRAC,
    )


def _profile(
    case: Case, name: str, law: Coefficients, notes: str, source: str, **more: Any
) -> ProfileFile:
    shape, gpu_name = SHAPES[case.model], GPU_NAMES[case.gpu]
    memory_bytes = GPUS[gpu_name].memory_bytes * case.tensor_parallel
    weights_bytes = total_params(shape) * VALUE_BYTES
    kv_bytes = kv_bytes_per_token(shape, VALUE_BYTES)
    room_tokens = int((KV_MEMORY_FRAC * memory_bytes - weights_bytes) / kv_bytes)
    measured = source == SOURCE
    return ProfileFile(
        schema_version=1,
        name=name,
        coefficients=law,
        kv_bytes_per_token=kv_bytes,
        kv_capacity_tokens=room_tokens // BLOCK_TOKENS * BLOCK_TOKENS,
        model=shape,
        provenance=Provenance(
            source=source,
            model=case.model,
            gpu=gpu_name,
            tensor_parallel=case.tensor_parallel,
            engine="vllm" if measured else "none",
            engine_version=ENGINE_VERSIONS[case.gpu] if measured else "none",
            dtype="bfloat16",
            date=DATE,
            notes=f"{notes} kv_capacity_tokens = ({KV_MEMORY_FRAC:.0%} of {case.tensor_parallel} x "
            f"{GPUS[gpu_name].memory_bytes / 1e9:.0f} GB - {weights_bytes / 1e9:.1f} GB of "
            f"weights) / kv_bytes_per_token, in whole blocks of {BLOCK_TOKENS}.",
        ),
        **more,
    )


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    grids = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    for profile in profiles(grids):
        write_profile_file(TARGET / f"{profile.name}.json", profile)
        print(profile.name)


if __name__ == "__main__":
    main()
