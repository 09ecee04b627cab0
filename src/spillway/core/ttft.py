"""Predicted TTFT by each path, in the five parts that a run also measures.

The parts add up to the total, so a wrong prediction can be blamed on queueing, execution, transfer,
admission or the first decode step. A decode node pulls: it books room for the prompt first, so KV
that waits for room has not moved, and the path's total is `max(queue + execute, KV wait) + transfer
+ step boundaries + first step`.
"""

from __future__ import annotations

from typing import NamedTuple

from spillway.core.chunks import ChunkPlan
from spillway.core.decide import TtftEstimate
from spillway.core.latency import step_s, token_pairs, tokens_s
from spillway.core.types import NodeSpec, NodeView, RequestView

# Assumed output length while no completion has been seen.
OUTPUT_TOKENS_DEFAULT = 256


def execute_on_prefill_s(request: RequestView, node: NodeView) -> float:
    """Return the seconds the prompt adds to a prefill node's packed FIFO backlog. Cost O(1)."""
    spec = node.spec
    profile, step_tokens_max = spec.profile, spec.step_tokens_max
    tokens = request.uncached_tokens(spec.node_id)
    # The backlog's own time cancels out of prefill_s(ahead + prompt) - prefill_s(ahead), but for
    # the partial step that the prompt fills up.
    ahead_tokens = node.backlog_tokens
    full_steps, rest_tokens = divmod(ahead_tokens + tokens, step_tokens_max)
    added_s = profile.token_pair_s * token_pairs(tokens, request.prompt_tokens - tokens)
    if rest_tokens:
        added_s += profile.step_base_s + tokens_s(profile, rest_tokens)
    if ahead_tokens > 0:
        ahead_steps, shared_tokens = divmod(ahead_tokens, step_tokens_max)
        full_steps -= ahead_steps
        if shared_tokens:
            added_s -= profile.step_base_s + tokens_s(profile, shared_tokens)
    if full_steps:
        added_s += full_steps * spec.full_step_s
    return added_s


class DecodeSide(NamedTuple):
    """What the decode node adds to a request that comes from a prefill node, seconds.

    kv_wait_s: until it has KV room.  boundary_s: for the ends of the steps under way, before the
    pull and after it.  first_step_s: the own step.
    """

    kv_wait_s: float
    boundary_s: float
    first_step_s: float


def decode_side(request: RequestView, decode: NodeView, output_tokens: int) -> DecodeSide:
    """Return the decode node's part of the prefill path; one for all prefill nodes."""
    profile = decode.spec.profile
    seqs, kv_tokens = decode.decode_seqs, decode.kv_used_tokens
    # The pull begins at a step boundary, on average half a step away, and so does the first step.
    boundary_s = step_s(profile, seqs, kv_tokens) if seqs else 0.0
    first_s = step_s(profile, seqs + 1, kv_tokens + request.prompt_tokens)
    return DecodeSide(_kv_wait_s(request, decode, output_tokens), boundary_s, first_s)


def ttft_via_prefill(
    request: RequestView, prefill: NodeView, decode: NodeView, now_s: float, side: DecodeSide
) -> TtftEstimate:
    """Predict TTFT when the prompt runs on `prefill` and its KV moves to `decode`.

    Formula: max(queue + execute, KV wait) + transfer + boundaries + T_d(B + 1, KV + prompt).
    Reads:   backlog of `prefill`, the links of both (report + what was sent since), the batch of
             `decode` through `side` (`decode_side`).
    Cost:    O(log hinges).
    """
    queue_s = prefill.backlog_until_s - now_s
    if queue_s < 0.0:
        queue_s = 0.0
    execute_s = execute_on_prefill_s(request, prefill)
    pull_s = queue_s + execute_s
    kv_wait_s, boundary_s, first_step_s = side
    admission_s = boundary_s
    if kv_wait_s > pull_s:
        admission_s += kv_wait_s - pull_s
        pull_s = kv_wait_s
    transfer_s = _transfer_s(request, prefill, decode, now_s, pull_s)
    return TtftEstimate(queue_s, execute_s, transfer_s, admission_s, first_step_s)


def ttft_via_decode(
    request: RequestView, decode: NodeView, plan: ChunkPlan, now_s: float
) -> TtftEstimate:
    """Predict TTFT when the prompt runs on `decode`, in place, by `plan`.

    Formula: deflected work ahead + the plan's own time; its last chunk yields the first token, so
    there is neither a transfer nor a further step. Cost O(log hinges).
    """
    queue_s = max(0.0, decode.backlog_until_s - now_s)
    boundary_s = 0.0
    if decode.decode_seqs and queue_s == 0.0:
        boundary_s = 0.5 * step_s(decode.spec.profile, decode.decode_seqs, decode.kv_used_tokens)
    return TtftEstimate(queue_s, plan.execute_s, 0.0, boundary_s, 0.0)


def transfer_bytes(request: RequestView, prefill: NodeView, decode: NodeView) -> int:
    """Return the KV bytes that must move: the tokens that `decode` does not hold already."""
    tokens = request.uncached_tokens(decode.spec.node_id)
    return tokens * prefill.spec.profile.kv_bytes_per_token


def link_end_s(end: NodeSpec, other: NodeSpec, kv_bytes: int) -> float:
    """Return the seconds for which a transfer occupies the link of `end`: base + bytes / own rate.

    The base is that of the worse end; the rate is the end's own, so a slow node does not hold up
    what a fast one exchanges with others.
    """
    base_s = end.link_base_s if end.link_base_s > other.link_base_s else other.link_base_s
    return base_s + kv_bytes / end.link_bytes_per_s


def link_s(prefill: NodeView, decode: NodeView, kv_bytes: int) -> float:
    """Return the seconds `kv_bytes` take between two nodes on idle links: base + bytes / rate."""
    source, to = prefill.spec, decode.spec
    return max(link_end_s(source, to, kv_bytes), link_end_s(to, source, kv_bytes))


def book_transfer(prefill: NodeView, decode: NodeView, kv_bytes: int, now_s: float) -> None:
    """Book a transfer on the links of both nodes, each first in, first out.

    It enters the decode node's link when the prefill node's link begins to send it.
    """
    source, to = prefill.spec, decode.spec
    starts_s = max(prefill.link_until_s, now_s)
    prefill.link_until_s = starts_s + link_end_s(source, to, kv_bytes)
    decode.link_until_s = max(decode.link_until_s, starts_s) + link_end_s(to, source, kv_bytes)


def _transfer_s(
    request: RequestView, prefill: NodeView, decode: NodeView, now_s: float, pull_in_s: float
) -> float:
    """Return the transfer with the wait for both links, given when the pull can begin.

    The prefill node's link is free once it has carried what it holds and what the backlog ahead
    will put on it: on a slow link that, and not the prefill, is the queue. What the backlogs will
    bring to the decode node's link is not known before its decode nodes are chosen.
    """
    source, to = prefill.spec, decode.spec
    kv_bytes = transfer_bytes(request, prefill, decode)
    ahead_bytes = prefill.backlog_tokens * source.profile.kv_bytes_per_token
    free_in_s = prefill.link_until_s - now_s
    if free_in_s < 0.0:
        free_in_s = 0.0
    wait_out_s = free_in_s + ahead_bytes / source.link_bytes_per_s - pull_in_s
    if wait_out_s < 0.0:
        wait_out_s = 0.0
    wait_in_s = decode.link_until_s - now_s - pull_in_s
    if wait_in_s < wait_out_s:
        wait_in_s = wait_out_s
    out_s = wait_out_s + link_end_s(source, to, kv_bytes)
    in_s = wait_in_s + link_end_s(to, source, kv_bytes)
    return out_s if out_s > in_s else in_s


def _kv_wait_s(request: RequestView, decode: NodeView, output_tokens: int) -> float:
    """Return the expected wait for KV room: what is lacking over the rate at which streams free it.

    A stream frees its share kv_used/B every output_tokens·T/B seconds, in the steady state.
    """
    lacking = decode.kv_used_tokens + request.prompt_tokens - decode.kv_capacity_tokens
    frees = decode.decode_seqs and decode.kv_used_tokens  # a report may claim one without the other
    if lacking <= 0 or not decode.kv_capacity_tokens or not frees:
        return 0.0
    now_step_s = step_s(decode.spec.profile, decode.decode_seqs, decode.kv_used_tokens)
    return lacking * output_tokens * now_step_s / decode.kv_used_tokens
