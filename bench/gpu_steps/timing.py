"""How long a step of the kernels takes: by CUDA events, by a replayed CUDA graph, or by clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from gpu_steps.kernels import Model
from gpu_steps.sweep import Cell

WARM_UPS = 3


class Taken(NamedTuple):
    """What a step took. cpu_s: processor time; 0 where that says nothing, as on a GPU."""

    wall_s: float
    cpu_s: float = 0.0


def step_times(model: Model, cell: Cell, depth: float, repeats: int, *, graph: bool) -> list[Taken]:
    """Return the time of each repeat of a step, of the full depth.

    depth: layers of the model over layers run, by which the layers' part is multiplied.
    graph: replay the step from a CUDA graph, as engines do for decodes.
    """
    hidden = model.inputs(cell)

    def body() -> object:
        return model.body(hidden, cell)

    def head() -> object:
        return model.head(hidden, cell)

    with torch.inference_mode():
        if hidden.is_cuda:
            timed = _on_gpu
            if graph:
                body, head = _captured(body), _captured(head)
        else:
            timed = _on_processor
        for _ in range(WARM_UPS):
            body(), head()
        pairs = [(timed(body), timed(head)) for _ in range(repeats)]
    return [
        Taken(depth * one.wall_s + rest.wall_s, depth * one.cpu_s + rest.cpu_s)
        for one, rest in pairs
    ]


def _on_gpu(run: Callable[[], object]) -> Taken:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return Taken(float(start.elapsed_time(end)) / 1e3)


def _on_processor(run: Callable[[], object]) -> Taken:
    start_s, cpu_start_s = time.perf_counter(), time.thread_time()
    run()
    return Taken(time.perf_counter() - start_s, time.thread_time() - cpu_start_s)


def _captured(run: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of `run`, captured after it has run on another stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
