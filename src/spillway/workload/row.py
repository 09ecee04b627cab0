"""One request of a workload, whatever trace or distribution it came from."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """A request to be sent.

    arrival_s: seconds from the start of the workload.
    output_tokens: the true output length; the load generator and the simulated engine know it, a
        policy never does.
    prefix_blocks: ids of the prompt's leading blocks of `block_tokens` tokens. Two prompts share
        their KV as far as these agree. The last one may be partial where a trace lists partial
        blocks; a tail without an id is never shared. Empty when unknown.
    session_id: the conversation that the request belongs to; "" when it stands alone. A nested
        conversation has an id of its own, `outer/inner`.
    think_s: pause of the client between the session's previous answer and this request, as
        recorded; for replay in a closed loop. 0 when unknown.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    class_name: str = "default"
    prefix_blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    session_id: str = ""
    think_s: float = 0.0
