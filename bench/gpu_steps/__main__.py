"""Times a model's kernels over a sweep of steps, and writes samples for `spillway fit`.

    make gpu-steps                                                   both models, graphs on and off
    PYTHONPATH=src:bench python -m gpu_steps --model llama-3.1-8b --graphs off --out samples.jsonl
    spillway fit samples.jsonl --out llama-3.1-8b-h200.json

Needs PyTorch. Without a GPU, `--device cpu --small` runs the same code in a size that says nothing
about any real model, and is there to see that it works; add `--clock cpu` to the fit then.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from gpu_steps.shapes import SHAPES, Shape, small
from gpu_steps.sweep import FULL, SMALL, Cell, captured_seqs, cells, kv_room_tokens
from spillway import __version__
from spillway.calib.samples import EngineLimits, Head, Sample, SampleFile, write_samples
from spillway.core.errors import ConfigError

SMALL_MEMORY_BYTES = 256 << 20
SMALL_REPEATS, REPEATS = 4, 12
KV_TOKENS_MAX = 4_000_000  # no step of the sweep holds more

Time = Callable[[Cell], Sequence[tuple[float, float]]]


def main() -> None:
    """Measure one model, or say in one line why not."""
    asked = _asked()
    try:
        _measure(asked)
    except ConfigError as error:
        print(f"gpu_steps: error: {error}", file=sys.stderr)
        sys.exit(2)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_steps", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it")
    parser.add_argument("--small", action="store_true", help="the architecture in a tiny size")
    parser.add_argument("--layers", type=int, default=4, help="how many to run; 0: all of them")
    parser.add_argument("--graphs", choices=("on", "off"), default="off", help="for decodes alone")
    parser.add_argument("--repeats", type=int, help=f"of each step; default {REPEATS}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("samples.jsonl"))
    return parser.parse_args()


def _measure(asked: argparse.Namespace) -> None:
    shape = small(SHAPES[asked.model]) if asked.small else SHAPES[asked.model]
    layers = min(asked.layers or shape.layers, shape.layers)
    torch = _torch(asked)
    is_gpu = asked.device == "cuda"
    if not is_gpu:
        torch.set_num_threads(1)  # several would wait for one another on a busy machine
    memory = torch.cuda.get_device_properties(0).total_memory if is_gpu else SMALL_MEMORY_BYTES
    room_tokens = min(KV_TOKENS_MAX, kv_room_tokens(shape, memory, layers))
    plan = cells(SMALL if asked.small else FULL, shape, room_tokens)

    from gpu_steps.kernels import Model
    from gpu_steps.timing import Taken, step_times

    largest = max(captured(cell, asked.graphs).resident_tokens for cell in plan)
    model = Model(shape, layers, largest, asked.device, asked.seed)
    repeats = asked.repeats or (SMALL_REPEATS if asked.small else REPEATS)

    def timed(cell: Cell) -> list[Taken]:
        ran = captured(cell, asked.graphs)
        use_graph = is_gpu and asked.graphs == "on" and not cell.chunk_tokens
        return step_times(model, ran, shape.layers / layers, repeats, graph=use_graph)

    samples = collect(plan, timed)
    gpu = torch.cuda.get_device_name(0) if is_gpu else f"none: {platform.machine()} processor"
    head = head_of(asked, shape, layers, max(room_tokens, 1), gpu, str(torch.__version__))
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_samples(asked.out, SampleFile(head, samples))
    print(f"{asked.out}: {len(samples):,} steps. Next: spillway fit {asked.out}")


def _torch(asked: argparse.Namespace):  # type: ignore[no-untyped-def]  # a module
    try:
        import torch
    except ImportError:
        raise ConfigError("PyTorch is not installed here; `make vllm-env` brings it") from None
    if asked.device != "cuda" and asked.graphs == "on":
        raise ConfigError("--graphs on: CUDA graphs need --device cuda")
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no GPU is to be had; --device cpu --small shows that it works")
    return torch


def captured(cell: Cell, graphs: str) -> Cell:
    """Return the step that runs: with graphs, decodes alone are padded to a captured batch."""
    if graphs == "off" or cell.chunk_tokens:
        return cell
    return Cell(captured_seqs(cell.decode_seqs), cell.context_tokens)


def collect(plan: list[Cell], timed: Time) -> list[Sample]:
    """Return a sample for each repeat of each step, its features as they were asked for.

    timed: returns (wall-clock, processor) seconds of each repeat.
    """
    samples = []
    for number, cell in enumerate(plan, start=1):
        if sys.stderr.isatty():
            print(f"\r{number} of {len(plan)} steps", end="", file=sys.stderr, flush=True)
        samples += [
            Sample(
                decode_seqs=cell.decode_seqs,
                kv_tokens=cell.kv_tokens,
                prefill_tokens=cell.chunk_tokens,
                prefill_token_pairs=cell.pairs,
                step_s=wall_s,
                cpu_s=cpu_s,
            )
            for wall_s, cpu_s in timed(cell)
        ]
    return samples


def head_of(
    asked: argparse.Namespace, shape: Shape, layers: int, room_tokens: int, gpu: str, torch: str
) -> Head:
    """Return where the samples come from."""
    sweep = SMALL if asked.small else FULL
    notes = ["kernels alone: no sampling, scheduling, paging or HTTP; random weights"]
    if layers < shape.layers:
        notes.append(f"{layers} of {shape.layers} layers were run, and scaled to all of them")
    if shape.experts:
        notes.append("experts: perfectly even routing")
    return Head(
        spillway_version=__version__,
        date=date.today().isoformat(),
        source="kernels",
        model=shape.name,
        engine="PyTorch kernels",
        engine_version=torch,
        limits=EngineLimits(
            context_tokens_max=shape.context_tokens_max,
            kv_capacity_tokens=room_tokens,
            streams_max=max(sweep.decode_seqs),
            chunk_tokens_max=max(sweep.chunk_tokens),
        ),
        gpu=gpu,
        dtype="bfloat16",
        kv_bytes_per_token=shape.kv_bytes_per_token,
        machine=f"{platform.system()} {platform.machine()}",
        seed=asked.seed,
        quick=asked.small,
        flags={"cuda_graphs": asked.graphs, "layers": layers},
        notes=tuple(notes),
    )


if __name__ == "__main__":
    main()
