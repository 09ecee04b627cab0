"""One request of a workload, whatever trace or distribution it came from."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A request to be sent.

    arrival_s: seconds from the start of the workload.
    output_tokens: the true output length; the load generator and the simulated engine know it, a
        policy never does.
    prefix_blocks: ids of the prompt's leading blocks of `block_tokens` tokens, the last of which
        may be partial. Two prompts share their KV as far as these agree. Empty when unknown.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str = "default"
    prefix_blocks: tuple[int, ...] = ()
    block_tokens: int = 0
