"""How a decode node takes over a prompt that another node has prefilled: it pulls the KV.

Room comes first, as in vLLM v1: at a step boundary the node books KV for the whole prompt, and
only then asks for the transfer. Until the KV has come the request takes no part in any step and
cannot be preempted. So while a decode node is full, the KV stays where it was computed, and takes
up room there. Source: vLLM 0.32, `Scheduler.schedule`, state WAITING_FOR_REMOTE_KVS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spillway.sim.residents import PULLING, Outcome, PullStarted, Resident

if TYPE_CHECKING:
    from spillway.sim.node import SimNode


def admit(node: SimNode, at_s: float, outcomes: list[Outcome]) -> None:
    """At a step boundary: let in what has arrived, then start pulls, in order, while room lasts.

    A preempted prompt that waits for room goes before every new pull. O(requests let in).
    """
    batch, kv, landed, arrived = node.batch, node.kv, node.landed, node.arrived
    seqs_max = node.spec.seqs_max - len(node.prompts.running)
    while landed and batch.seqs < seqs_max:
        _join(node, landed.popleft(), at_s)
    if not arrived or (node.prompts.queued and node.prompts.blocked()):
        return
    while arrived and batch.seqs < seqs_max:
        resident = arrived[0]
        # Room for the prompt, and for a step of the batch with it and what is on its way.
        coming = node.pulls + len(landed)
        if kv.free_tokens <= kv.needed_tokens(resident) + batch.seqs + coming:
            return
        arrived.popleft()
        resident.computed_tokens = kv.enter(resident, resident.prompt_tokens)
        if resident.kv_arrived_s is not None:
            _join(node, resident, at_s)
        else:
            resident.phase = PULLING
            resident.pull_s = at_s
            node.pulls += 1
            outcomes.append(PullStarted(resident, at_s))


def _join(node: SimNode, resident: Resident, at_s: float) -> None:
    node.batch.add(resident)
    node.batch.fresh.append(resident)
    resident.admitted_s = at_s
