"""What must hold of the dispatcher after every event, and of every decision: the checkers.

They recompute from first principles what the code under check keeps up to date step by step, so a
drifting sum or an explanation that does not fit its decision is found where it arises. Tests and
the simulator's debug mode call them after each event; production does not. Each law is numbered in
docs/invariants.md. These functions read the private books of `dispatcher` and `ledger` on purpose.
"""

from __future__ import annotations

from collections import Counter
from math import inf, isclose, isfinite

from spillway.core.chunks import STEP_TOLERANCE_S, ChunkPlan
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.dispatcher import Dispatcher
from spillway.core.errors import InvariantViolation
from spillway.core.latency import step_s
from spillway.core.ledger import Entry, NodeLedger
from spillway.core.lifecycle import State
from spillway.core.placement import budget_s, state_veto
from spillway.core.types import ChunkMode, ClusterView, NodeView, RequestView

# Sums of floats made in different orders agree to this share.
REL_TOLERANCE = 1e-9
# Deflections of policies without a step-time model: their plan is an estimate, not a promise.
UNGUARDED = frozenset(
    {Reason.PREFILL_BUSY, Reason.SHORT_PROMPT, Reason.BEST_SCORE, Reason.COLOCATED}
)


def check_dispatcher(dispatcher: Dispatcher) -> None:
    """Raise InvariantViolation unless the dispatcher's books add up (INV-1, INV-2, INV-18).

    Cost O(live requests + nodes).
    """
    _check_conservation(dispatcher)
    _check_bookings(dispatcher)
    for node in dispatcher.ledger.nodes.values():
        _check_book(node)
        _check_view(node)


def check_decision(
    decision: Decision, request: RequestView, cluster: ClusterView, *, tbt_frac: float = 1.0
) -> None:
    """Raise InvariantViolation unless the decision is possible, safe and explained by itself.

    INV-4 and INV-5 for its plan, INV-14 for its node, INV-19 for its estimates and candidates.
    `cluster` is the view it was made from. tbt_frac: the share of the residents' target that a
    literal schedule (`execute_plan`) may fill; the printed rule calls it beta. Cost O(candidates +
    chunks of the plan).
    """
    _check_route(decision, cluster)
    _check_candidates(decision)
    for estimate in (decision.estimate, *(one.estimate for one in decision.candidates)):
        _check_estimate(estimate)
    if decision.route is Route.DEFLECTED:
        node = _node(_pool_of(decision, cluster), decision.decode_node_id)
        _require(state_veto(node, cluster) is None, f"INV-14: {node.node_id} is vetoed, yet chosen")
        assert decision.plan is not None  # _check_route
        _check_plan(decision, decision.plan, request, node, tbt_frac)


# --- the dispatcher ------------------------------------------------------------------------------


def _check_conservation(dispatcher: Dispatcher) -> None:
    counts = dispatcher.counts
    _require(min(counts) >= 0, f"INV-1: a state has a negative count: {counts}")
    _require(
        sum(counts) == dispatcher.arrived,
        f"INV-1: {dispatcher.arrived} requests arrived, {sum(counts)} are accounted for",
    )
    live = Counter(tracked.state for tracked in dispatcher._live.values())
    for state in State:
        if not state.is_final:
            _require(
                live[state] == counts[state],
                f"INV-1: {counts[state]} requests counted {state.name}, {live[state]} are",
            )
        _require(not (state.is_final and live[state]), f"INV-2: a live request is {state.name}")
    _require(live[State.ARRIVED] == 0, "INV-1: a request was left undecided")
    held = dispatcher._held
    _require(
        {one.request.request_id for one in held}
        == {name for name, one in dispatcher._live.items() if one.state is State.HELD}
        and len(held) == live[State.HELD],
        "INV-13: the line of held requests is not those that are held",
    )
    _require(not held or held.timer_s < inf, "INV-13: requests are held and no timer is pending")


def _check_bookings(dispatcher: Dispatcher) -> None:
    nodes = dispatcher.ledger.nodes
    booked = 0
    for request_id, tracked in dispatcher._live.items():
        _require(
            0 <= tracked.retries <= dispatcher.limits.retries_max,
            f"{request_id} was started again {tracked.retries} times",
        )
        entry = tracked.entry
        if tracked.state is State.HELD:
            _require(entry is None, f"INV-18: {request_id} is held, yet booked")
            continue
        _require(entry is not None, f"INV-18: {request_id} is live and nowhere booked")
        assert entry is not None
        found = nodes[tracked.node_id]._own.get(entry.dispatch_id)
        _require(found is entry, f"INV-18: {request_id} is not in the book of {tracked.node_id}")
        _require(
            entry.decoding == (tracked.state is State.DECODING),
            f"INV-18: {request_id} is {tracked.state.name}, its booking disagrees",
        )
        booked += 1
    outstanding = sum(node.outstanding for node in nodes.values())
    _require(
        outstanding == booked, f"INV-18: {outstanding} dispatches booked for {booked} requests"
    )


def _check_book(node: NodeLedger) -> None:
    where = f"INV-18: {node.spec.node_id}:"
    entries = list(node._own.values())
    prompts = [entry for entry in entries if entry.tokens and not entry.decoding]
    pulls = [entry for entry in entries if not entry.tokens]
    joining = [entry for entry in pulls if entry.unseen]
    local = [entry for entry in entries if entry.tokens and entry.decoding]
    unseen = [entry for entry in prompts if entry.unseen]
    for name, kept, counted in (
        ("prompts", node._own_prompts, len(prompts)),
        ("tokens", node._own_tokens, sum(entry.tokens for entry in prompts)),
        ("decode_seqs", node._own_decode_seqs, len(pulls) + len(local)),
        ("kv_tokens", node._own_kv_tokens, sum(entry.kv_tokens for entry in entries)),
        ("joining_seqs", node._joining_seqs, len(joining)),
        ("joining_kv_tokens", node._joining_kv_tokens, sum(one.kv_tokens for one in joining)),
        ("unseen_prompts", node._unseen_prompts, len(unseen)),
        ("unseen_tokens", node._unseen_tokens, sum(entry.tokens for entry in unseen)),
    ):
        _require(kept == counted, f"{where} {name} is {kept}, its bookings sum to {counted}")
    for name, kept_pairs, among in (
        ("pairs", node._own_pairs, prompts),
        ("unseen_pairs", node._unseen_pairs, unseen),
    ):
        summed = sum(entry.pairs for entry in among)
        _require(_close(kept_pairs, summed), f"{where} {name} is {kept_pairs}, not {summed}")
    targets = Counter(entry.tbt_s for entry in entries if entry.tbt_s != inf)
    _require(node._tbt_counts == targets, f"{where} targets {node._tbt_counts}, not {targets}")
    _check_unseen_order(where, list(node._unseen), unseen + joining)


def _check_unseen_order(where: str, queue: list[Entry], unseen: list[Entry]) -> None:
    ids = [entry.dispatch_id for entry in queue]
    _require(ids == sorted(set(ids)), f"{where} dispatches are out of order: {ids}")
    waiting = [entry.dispatch_id for entry in queue if entry.unseen]
    _require(
        waiting == sorted(entry.dispatch_id for entry in unseen),
        f"{where} unseen dispatches {waiting} are not the bookings marked so",
    )


def _check_view(node: NodeLedger) -> None:
    view = node.view
    where = f"INV-18: view of {view.node_id}:"
    for name in (
        "backlog_prompts",
        "backlog_tokens",
        "backlog_token_pairs",
        "decode_seqs",
        "kv_used_tokens",
        "kv_capacity_tokens",
    ):
        value = getattr(view, name)
        _require(value >= -REL_TOLERANCE, f"{where} {name} is negative: {value}")
    _require(view.reporting == (node._report is not None), f"{where} reporting is wrong")
    _require(view.backlog_until_s == view.backlog_until_s, f"{where} backlog_until_s is NaN")
    strictest = min(node._tbt_counts, default=inf)
    _require(view.tbt_s_min <= strictest, f"{where} a resident's target is not protected")


# --- a decision ----------------------------------------------------------------------------------


def _check_route(decision: Decision, cluster: ClusterView) -> None:
    if decision.route is Route.REJECTED:
        _require(
            decision.prefill_node_id is None and decision.decode_node_id is None,
            "INV-19: a rejected request was given a node",
        )
        return
    if decision.route is Route.DEFLECTED:
        _require(decision.prefill_node_id is None, "INV-19: a deflection names a prefill node")
        _require(decision.plan is not None, "INV-19: a deflection without a plan")
    else:
        _require(decision.plan is None, "INV-19: a chunk plan on the prefill path")
        node = _node(cluster.prefill, decision.prefill_node_id)
        _require(node.usable, f"INV-19: {node.node_id} is not usable, yet chosen")
        if decision.reason is Reason.POLICY_FAILED:
            return  # the fall-back leaves the decode node open
    node = _node(_pool_of(decision, cluster), decision.decode_node_id)
    _require(node.usable, f"INV-19: {node.node_id} is not usable, yet chosen")


def _check_candidates(decision: Decision) -> None:
    chosen: list[Candidate] = [one for one in decision.candidates if one.verdict is Reason.CHOSEN]
    if decision.route is Route.REJECTED or decision.reason is Reason.POLICY_FAILED:
        _require(not chosen, "INV-19: a candidate is marked chosen, but none was")
        return
    _require(len(chosen) == 1, f"INV-19: {len(chosen)} candidates are marked chosen")
    one = chosen[0]
    _require(
        one.prefill_node_id == decision.prefill_node_id
        and one.decode_node_id == decision.decode_node_id
        and one.estimate == decision.estimate,
        f"INV-19: the chosen candidate {one} is not the decision",
    )


def _check_estimate(estimate: TtftEstimate | None) -> None:
    for name, part_s in zip(TtftEstimate._fields, estimate or (), strict=False):
        _require(
            isfinite(part_s) and part_s >= 0,
            f"INV-19: estimate part {name} is {part_s}; it must be finite and >= 0",
        )


def _check_plan(
    decision: Decision, plan: ChunkPlan, request: RequestView, node: NodeView, tbt_frac: float
) -> None:
    literal = decision.execute_plan  # the printed rule gives no credit for a cached prefix
    tokens = request.prompt_tokens if literal else request.uncached_tokens(node.node_id)
    _require(plan.tokens == tokens, f"INV-5: the plan covers {plan.tokens} of {tokens} tokens")
    _require(
        all(chunk >= 1 and steps >= 1 for chunk, steps in plan.chunks),
        f"INV-5: an empty chunk or step in {plan.chunks}",
    )
    if not literal and node.spec.chunk_mode is ChunkMode.ENGINE:
        multiple = node.spec.chunk_tokens_multiple
        sizes = [chunk for chunk, _ in plan.chunks[:-1]]
        if plan.chunks[-1][1] > 1:  # the last size is that of more than the last chunk
            sizes.append(plan.chunks[-1][0])
        _require(
            all(size % multiple == 0 for size in sizes),
            f"INV-5: {plan.chunks} holds a chunk that is not a multiple of {multiple}",
        )
    execute_s, step_s_max = walk_plan(plan, request, node, literal=literal)
    _require(
        _close(plan.execute_s, execute_s) and _close(plan.step_s_max, step_s_max),
        f"INV-4: the plan claims {plan.execute_s} s, {plan.step_s_max} s at most a step; its steps"
        f" come to {execute_s} s and {step_s_max} s",
    )
    if decision.reason in UNGUARDED:
        return
    limit_s = budget_s(node)
    if literal:
        limit_s = tbt_frac * (node.tbt_s_min if node.decode_seqs else request.slo.tbt_s)
    _require(
        step_s_max <= limit_s + 2 * STEP_TOLERANCE_S,
        f"INV-4: a step of {step_s_max} s on {node.node_id} exceeds {limit_s} s",
    )


def walk_plan(
    plan: ChunkPlan, request: RequestView, node: NodeView, *, literal: bool
) -> tuple[float, float]:
    """Return (sum, maximum) of the step times of `plan` on `node`, seconds, step by step.

    literal: the printed rule's batch: B constant, KV grows by the prompt itself. Otherwise every
    stream grows by a token per step, and prompts ahead count as streams. Cost O(steps).
    """
    profile = node.spec.profile
    seqs = node.decode_seqs + (0 if literal else node.backlog_prompts)
    kv_tokens = node.kv_used_tokens
    context = 0 if literal else request.prompt_tokens - plan.tokens
    total_s = step_s_max = 0.0
    for chunk, steps in plan.chunks:
        for _ in range(steps):
            one_s = step_s(profile, seqs, kv_tokens, chunk, context)
            total_s += one_s
            step_s_max = max(step_s_max, one_s)
            context += chunk
            kv_tokens += chunk if literal else seqs
    return total_s, step_s_max


def _pool_of(decision: Decision, cluster: ClusterView) -> tuple[NodeView, ...]:
    """Return the nodes that may decode: all of them where prompt and decode are never parted."""
    together = decision.reason is Reason.COLOCATED
    return (*cluster.decode, *cluster.prefill) if together else cluster.decode


def _node(nodes: tuple[NodeView, ...], node_id: str | None) -> NodeView:
    for node in nodes:
        if node.spec.node_id == node_id:
            return node
    raise InvariantViolation(f"INV-19: {node_id} was chosen, but is not in the view")


def _close(left: float, right: float) -> bool:
    return isclose(left, right, rel_tol=REL_TOLERANCE, abs_tol=1e-6)


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise InvariantViolation(text)
