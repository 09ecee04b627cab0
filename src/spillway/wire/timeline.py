"""What every node of a cluster did in a stretch of time: the data of a Gantt view."""

from __future__ import annotations

import msgspec


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """A run of alike engine steps on one node.

    decode_seqs: streams that got a token in each of them.
    prefill_tokens: prompt tokens per step whose decode runs elsewhere; deflected_tokens: those that
        stay. prompts: ids of the requests whose prompts they are of.
    """

    node_id: str
    start_s: float
    end_s: float
    steps: int
    decode_seqs: int
    prefill_tokens: int
    deflected_tokens: int
    prompts: tuple[str, ...] = ()


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt that waited: from its arrival until its first chunk ran."""

    from_s: float
    to_s: float
    prompt_tokens: int


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run between two times, seconds of the workload.

    node_ids: in the order to show them, prefill nodes first.
    ttft_p95_s: of the whole run, to tell whether it is the run that a table is of.
    """

    policy: str
    from_s: float
    to_s: float
    node_ids: tuple[str, ...]
    spans: tuple[Span, ...]
    waiting: tuple[Waiting, ...]
    ttft_p95_s: float
