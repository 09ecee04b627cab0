"""Where a prompt or a stream could go, and what forbids it: the pieces that policies share.

Each veto is a word (`Reason`), never a silent skip. Missing or stale state is a veto.
"""

from __future__ import annotations

from math import inf

from spillway.core.chunks import STEP_TOLERANCE_S, ChunkPlan, plan_chunks, plan_from_sizes
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.latency import step_s
from spillway.core.ttft import (
    OUTPUT_TOKENS_DEFAULT,
    decode_side,
    execute_on_prefill_s,
    ttft_via_decode,
    ttft_via_prefill,
)
from spillway.core.types import (
    ChunkMode,
    ClusterView,
    NodeId,
    NodeView,
    RequestView,
    Role,
)

# Share of a node's KV that admission may promise; the rest absorbs what outgrows the forecast.
KV_WATERMARK_FRAC = 0.92
# Distinct chunk sizes in a router's plan: it costs the same for every prompt length.
PLAN_SIZES_MAX = 2


def output_tokens_expected(request: RequestView, cluster: ClusterView) -> int:
    """Return how long the answer is taken to become: the class's learned quantile, capped."""
    learned = cluster.output_tokens_by_class.get(request.class_name, OUTPUT_TOKENS_DEFAULT)
    return min(learned, request.output_tokens_max) if request.output_tokens_max else learned


def least_loaded_decode(
    request: RequestView, cluster: ClusterView, *, links: bool = False
) -> NodeView | None:
    """Return the usable decode node whose next step with the new stream is the shortest.

    Nodes with KV room come first; deflected work under way counts as a step at its budget.
    links: add the wait for the node's link, and the seconds that the prompt's KV takes on it.
    Ties break by node id. Cost O(decode nodes).
    """
    best = best_with_room = None
    best_s = best_with_room_s = inf
    prompt_tokens, cached = request.prompt_tokens, bool(request.cached_tokens_by_node)
    for node in cluster.decode:
        if not node.usable:
            continue
        profile = node.spec.profile
        kv_tokens = node.kv_used_tokens + prompt_tokens
        next_s = step_s(profile, node.decode_seqs + 1, kv_tokens)
        if node.backlog_prompts:
            target_s = min(node.tbt_s_min, request.slo.tbt_s)
            next_s = max(next_s, target_s * node.spec.tbt_margin_frac)
        if links:
            if node.link_until_s > cluster.now_s:
                next_s += node.link_until_s - cluster.now_s
            spec = node.spec
            tokens = request.uncached_tokens(spec.node_id) if cached else prompt_tokens
            next_s += tokens * profile.kv_bytes_per_token / spec.link_bytes_per_s
        if kv_tokens <= node.kv_capacity_tokens or not node.kv_capacity_tokens:
            if best_with_room is None or next_s < best_with_room_s:
                best_with_room, best_with_room_s = node, next_s
        elif best is None or next_s < best_s:
            best, best_s = node, next_s
    return best_with_room or best


def soonest_prefill(request: RequestView, cluster: ClusterView) -> NodeView | None:
    """Return the usable prefill node that would finish the prompt first, by predicted seconds."""
    best: NodeView | None = None
    best_s = inf
    now_s = cluster.now_s
    for node in cluster.prefill:
        if node.usable:
            done_s = max(node.backlog_until_s, now_s) + execute_on_prefill_s(request, node)
            if best is None or done_s < best_s:
                best, best_s = node, done_s
    return best


def state_veto(node: NodeView, cluster: ClusterView) -> Reason | None:
    """Return why nothing at all may be deflected to `node` now, or None."""
    if not node.usable:
        return Reason.NODE_DOWN
    mode = node.spec.chunk_mode
    if mode is ChunkMode.UNKNOWN or (mode is ChunkMode.ENGINE and not node.reporting):
        return Reason.STALE_VETO
    if node.reporting and cluster.now_s - node.heard_at_s > cluster.report_age_max_s:
        return Reason.STALE_VETO
    if node.drifting:
        return Reason.DRIFT_VETO
    # Without an end to its deflected backlog, no chunk of what is queued there is safe either.
    if node.over_budget or node.backlog_until_s == inf:
        return Reason.TBT_VETO
    return None


def kv_veto(request: RequestView, node: NodeView, output_tokens: int) -> bool:
    """Return whether the prompt, its answer and its neighbours' growth would overfill the node."""
    if node.kv_capacity_tokens <= 0:
        return True
    growth = node.decode_seqs * output_tokens // 2
    need = node.kv_used_tokens + growth + request.prompt_tokens + output_tokens
    return need > KV_WATERMARK_FRAC * node.kv_capacity_tokens


def deflection_veto(request: RequestView, cluster: ClusterView, node: NodeView) -> Reason | None:
    """Return why `node` may not be given the prompt, whatever a policy wants of it: state or KV."""
    veto = state_veto(node, cluster)
    if veto is None and kv_veto(request, node, output_tokens_expected(request, cluster)):
        return Reason.KV_VETO
    return veto


def budget_s(node: NodeView) -> float:
    """Return the longest step that keeps every resident of `node` within its target; inf if none.

    Deflected prompts ahead will be decoding by the time it matters, so they count as residents.
    """
    if node.decode_seqs or node.backlog_prompts:
        return node.tbt_s_min * node.spec.tbt_margin_frac
    return inf


def safe_plan(request: RequestView, node: NodeView) -> ChunkPlan | None:
    """Return the chunk schedule of the whole prompt that keeps every resident within its target.

    The target protected is the strictest of the residents'; an empty node protects nobody yet.
    On a stock engine (STATIC) the chunk is its setting, and the worst step must be safe.
    """
    limit_s = budget_s(node)
    plan = plan_within(request, node, limit_s)
    if plan is not None and plan.step_s_max > limit_s + STEP_TOLERANCE_S:
        return None
    return plan


def own_plan(request: RequestView, node: NodeView) -> ChunkPlan | None:
    """Return the schedule by which `node` will run the prompt if nobody asks whether it is safe.

    An engine that sizes its steps protects its residents where that is possible at all; elsewhere
    this is what its fixed setting comes to. None: the schedule would be out of bounds.
    """
    return safe_plan(request, node) or plan_within(request, node, inf)


def fixed_plan(
    request: RequestView, node: NodeView, chunk_tokens: int
) -> tuple[ChunkPlan | None, bool]:
    """Return (schedule, literal) in chunks of `chunk_tokens`, of the whole prompt.

    literal: the node must be told. A stock engine (STATIC) cannot be: it has a setting of its own.
    """
    if node.spec.chunk_mode is ChunkMode.STATIC:
        return plan_within(request, node, inf), False
    plan = plan_from_sizes(
        node.spec.profile,
        node.decode_seqs,
        node.kv_used_tokens,
        request.prompt_tokens,
        inf,
        (chunk_tokens,),
    )
    return plan, True


def static_chunk_tokens(node: NodeView) -> int:
    """Return the prefill tokens of a stock engine's step: of its pool's setting."""
    spec = node.spec
    return spec.step_tokens_max if spec.role is Role.PREFILL else spec.chunk_tokens_max


def plan_within(request: RequestView, node: NodeView, limit_s: float) -> ChunkPlan | None:
    """Return the schedule `node` would run the prompt by, its steps sized to `limit_s`.

    A stock engine (STATIC) sizes nothing: its chunk is fixed, whatever the limit.
    """
    spec = node.spec
    profile = spec.profile
    seqs = node.decode_seqs + node.backlog_prompts
    kv_tokens = node.kv_used_tokens
    tokens = request.uncached_tokens(spec.node_id)
    context = request.prompt_tokens - tokens
    if spec.chunk_mode is ChunkMode.STATIC:
        chunk = min(static_chunk_tokens(node), tokens)
        return plan_chunks(profile, seqs, kv_tokens, context, tokens, inf, chunk, 1)
    return plan_chunks(
        profile,
        seqs,
        kv_tokens,
        context,
        tokens,
        limit_s,
        spec.chunk_tokens_max,
        spec.chunk_tokens_multiple,
        PLAN_SIZES_MAX,
    )


def to_prefill(
    request: RequestView,
    cluster: ClusterView,
    prefill: NodeView,
    decode: NodeView | None,
    reason: Reason,
) -> Decision:
    """Return the decision for the prefill path, with its estimate; rejected without `decode`."""
    if decode is None:
        return Decision(Route.REJECTED, Reason.NO_NODE)
    side = decode_side(request, decode, output_tokens_expected(request, cluster))
    estimate = ttft_via_prefill(request, prefill, decode, cluster.now_s, side)
    prefill_id, decode_id = prefill.spec.node_id, decode.spec.node_id
    chosen = Candidate(prefill_id, decode_id, estimate, Reason.CHOSEN)
    return Decision(Route.PREFILL, reason, prefill_id, decode_id, estimate, candidates=(chosen,))


def deflect_unguarded(
    request: RequestView,
    cluster: ClusterView,
    remote: Decision,
    node: NodeView,
    reason: Reason,
) -> Decision:
    """Return a deflection to `node` that no step-time model has checked, or `remote` on a veto.

    remote: the decision for the prefill path, which it replaces. State and KV still veto; the plan
    serves the estimate alone. `reason` must be one that `invariants.UNGUARDED` lists.
    """
    node_id = node.spec.node_id
    veto = deflection_veto(request, cluster, node)
    plan = own_plan(request, node) if veto is None else None
    if plan is None:  # vetoed, or cut so small that the schedule is out of bounds
        vetoed = Candidate(None, node_id, None, veto or Reason.TBT_VETO)
        return remote._replace(
            reason=Reason.NO_SAFE_DECODE_NODE, candidates=(*remote.candidates, vetoed)
        )
    estimate = ttft_via_decode(request, node, plan, cluster.now_s)
    return deflected(remote, node_id, estimate, plan, reason)


def deflected(
    remote: Decision,
    node_id: NodeId,
    estimate: TtftEstimate,
    plan: ChunkPlan,
    reason: Reason,
    *,
    execute_plan: bool = False,
) -> Decision:
    """Return the deflection to `node_id` that won over `remote`, the prefill path."""
    way = (None, node_id)
    lost = [
        one._replace(verdict=Reason.SLOWER) if one.verdict is Reason.CHOSEN else one
        for one in remote.candidates
        if (one.prefill_node_id, one.decode_node_id) != way
    ]
    local = Candidate(None, node_id, estimate, Reason.CHOSEN)
    return Decision(
        Route.DEFLECTED, reason, None, node_id, estimate, plan, execute_plan, (*lost, local)
    )


def deflect_or_reject(request: RequestView, cluster: ClusterView) -> Decision:
    """Return what every policy does when no prefill node is usable: deflect if safe, else 503."""
    looked_at: list[Candidate] = []
    best: tuple[float, NodeView, ChunkPlan, TtftEstimate] | None = None
    for node in cluster.decode:
        veto = deflection_veto(request, cluster, node)
        plan = safe_plan(request, node) if veto is None else None
        if plan is None:
            looked_at.append(Candidate(None, node.spec.node_id, None, veto or Reason.TBT_VETO))
            continue
        estimate = ttft_via_decode(request, node, plan, cluster.now_s)
        looked_at.append(Candidate(None, node.spec.node_id, estimate, Reason.SLOWER))
        if best is None or estimate.total_s < best[0]:
            best = (estimate.total_s, node, plan, estimate)
    if best is None:
        return Decision(Route.REJECTED, Reason.NO_NODE, candidates=tuple(looked_at))
    _, node, plan, estimate = best
    node_id = node.spec.node_id
    return Decision(
        Route.DEFLECTED,
        Reason.PREFILL_DOWN,
        None,
        node_id,
        estimate,
        plan,
        candidates=mark_chosen(looked_at, None, node_id),
    )


def fall_back(request: RequestView, cluster: ClusterView) -> Decision:
    """Return what is done when the policy fails: the soonest prefill node, else safe deflection."""
    nodes = [node for node in cluster.prefill if node.usable]
    if not nodes:
        return deflect_or_reject(request, cluster)
    best = min(nodes, key=lambda node: (node.backlog_until_s, node.spec.node_id))
    return Decision(Route.PREFILL, Reason.POLICY_FAILED, best.spec.node_id)


def fall_back_decode(request: RequestView, cluster: ClusterView) -> NodeId | None:
    """Return the decode node for a prefilled request when the policy fails, None if none is up."""
    node = least_loaded_decode(request, cluster)
    return node.spec.node_id if node else None


def mark_chosen(
    candidates: list[Candidate], prefill_node_id: NodeId | None, decode_node_id: NodeId | None
) -> tuple[Candidate, ...]:
    """Return the candidates with the chosen one marked."""
    for at, one in enumerate(candidates):
        if one.prefill_node_id == prefill_node_id and one.decode_node_id == decode_node_id:
            candidates[at] = Candidate(prefill_node_id, decode_node_id, one.estimate, Reason.CHOSEN)
            break
    return tuple(candidates)
