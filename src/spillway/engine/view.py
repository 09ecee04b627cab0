"""What a scheduler holds at one moment, read in one pass and without touching it.

The pass goes over `scheduler.requests`, the one collection whose meaning is the same in every
release; the names and the roles of the queues differ. It runs before every step, so it does no more
than the plan and the report need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

from spillway.core.latency import token_pairs


class Statuses(NamedTuple):
    """The members of vLLM's RequestStatus that tell requests apart, handed in to import nothing."""

    running: object
    waiting: object
    preempted: object
    remote_kvs: object
    grammar: object


class Prompt(NamedTuple):
    """A prompt that is not wholly computed here. context_tokens: computed so far."""

    request: Any
    context_tokens: int
    remaining_tokens: int


@dataclass(slots=True)
class StepView:
    """The scheduler before a step.

    decode_seqs, kv_tokens: running requests past their prompt, and the KV tokens they hold.
    tbt_s_min: strictest target among those; inf when there is none.
    begun: prompts that run, or will whatever the queue's order: they recompute a failed KV load.
    queued: prompts that wait to be admitted, in order of arrival.
    ready_seqs, ready_kv_tokens: requests whose KV has arrived; each takes one token to join.
    unadmitted_seqs: requests whose KV is to be fetched but that have no room yet.
    pulling_seqs: requests whose KV is on its way.
    """

    decode_seqs: int = 0
    kv_tokens: int = 0
    tbt_s_min: float = inf
    begun: list[Prompt] = field(default_factory=list)
    queued: list[Prompt] = field(default_factory=list)
    ready_seqs: int = 0
    ready_kv_tokens: int = 0
    unadmitted_seqs: int = 0
    pulling_seqs: int = 0

    @property
    def is_empty(self) -> bool:
        """Say whether nothing is left to do."""
        return not (
            self.decode_seqs
            or self.begun
            or self.queued
            or self.ready_seqs
            or self.unadmitted_seqs
            or self.pulling_seqs
        )

    def backlog(self) -> tuple[int, int, float]:
        """Return the tokens of begun prompts, those of all prompts, and the latters' pairs."""
        begun_tokens = tokens = 0
        pairs = 0.0
        for prompt in self.begun:
            begun_tokens += prompt.remaining_tokens
            pairs += token_pairs(prompt.remaining_tokens, prompt.context_tokens)
        for prompt in self.queued:
            tokens += prompt.remaining_tokens
            pairs += token_pairs(prompt.remaining_tokens, prompt.context_tokens)
        return begun_tokens, begun_tokens + tokens, pairs


def look(
    scheduler: Any, statuses: Statuses, tbt_s_by_id: Mapping[str, float], tbt_s: float
) -> StepView:
    """Return what `scheduler` holds. O(requests), some 0.2 µs each.

    tbt_s_by_id: targets of requests that brought one; `tbt_s` holds for the others.
    """
    running, waiting, preempted, remote_kvs, grammar = statuses
    view = StepView()
    decode_seqs = kv_tokens = 0
    plain = False
    tbt_s_min = inf
    for request in scheduler.requests.values():
        status = request.status
        computed = request.num_computed_tokens
        if status is running:
            if request.is_prefill_chunk:
                view.begun.append(Prompt(request, computed, request.num_tokens - computed))
                continue
            decode_seqs += 1
            kv_tokens += computed
            target_s = tbt_s_by_id.get(request.request_id) if tbt_s_by_id else None
            if target_s is None:
                plain = True
            elif target_s < tbt_s_min:
                tbt_s_min = target_s
        elif status is waiting or status is preempted or status is grammar:
            params = request.kv_transfer_params
            if params and params.get("do_remote_prefill"):
                view.unadmitted_seqs += 1
            elif computed:
                _joining(view, request, computed)
            else:
                view.queued.append(Prompt(request, 0, request.num_tokens))
        elif status is remote_kvs:
            if request.request_id in scheduler.finished_recving_kv_req_ids:
                _joining(view, request, computed)
            else:
                view.pulling_seqs += 1
    view.decode_seqs = decode_seqs
    view.kv_tokens = kv_tokens
    view.tbt_s_min = min(tbt_s_min, tbt_s) if plain else tbt_s_min
    return view


def _joining(view: StepView, request: Any, computed_tokens: int) -> None:
    """A request that holds KV and is not running: ready to decode, or to recompute what is lost."""
    remaining = request.num_tokens - computed_tokens
    if remaining <= 1:
        view.ready_seqs += 1
        view.ready_kv_tokens += computed_tokens
    else:
        view.begun.append(Prompt(request, computed_tokens, remaining))
