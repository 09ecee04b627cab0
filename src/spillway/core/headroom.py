"""`headroom`: deflect into the room that decode nodes have, for relief and for slow prompts.

What it mends in the printed rule: several deflections per decode node, known at once from the
ledger; no deflection while nobody waits; estimates that know of transfer, link queue, cached
prefixes and decode admission; KV admission by learned output lengths; targets per request.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from typing import NamedTuple

from spillway.core.chunks import ChunkPlan
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.placement import (
    budget_s,
    deflect_or_reject,
    kv_veto,
    least_loaded_decode,
    mark_chosen,
    output_tokens_expected,
    own_plan,
    safe_plan,
    state_veto,
)
from spillway.core.ttft import DecodeSide, decode_side, ttft_via_decode, ttft_via_prefill
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView, Role


class _Remote(NamedTuple):
    node: NodeView
    candidate: Candidate
    estimate: TtftEstimate
    total_s: float
    wait_s: float  # everything but execution and the first step


class _Local(NamedTuple):
    node: NodeView
    plan: ChunkPlan
    estimate: TtftEstimate


OBJECTIVES = ("tail-ttft", "balanced", "protect-tbt")
_AT_LEAST_ZERO = (
    "feed_decode_steps",
    "feed_steps",
    "pressure_frac",
    "pressure_steps",
    "slow_frac",
    "work_weight",
)


@dataclass(frozen=True, slots=True)
class Headroom:
    """Deflect iff the prefill path is slow or has pressure and a safe decode node beats it.

    Rule:    slow: the best prefill path is predicted to take more than `slow_frac` of the TTFT
             target, time already waited included. Pressure: more than `pressure_frac` of it, and
             its queue + transfer + admission exceed `pressure_steps` full prefill steps, or half of
             that while any prefill node is at work: what comes next would find it busy. A decode
             node is safe when its state is known and fresh, it holds fewer than `deflections_max`
             prompts, KV admission passes and a chunk plan keeps every resident within its target.
             Deflect to the soonest safe node iff TTFT_dec <= margin(wait)·TTFT_pf, and TTFT_dec
             meets the target or beats TTFT_pf.
             Late binding: on either path a node is given work only while its backlog is short, so
             that it never runs dry; whoever would queue behind more is held at the router, and
             decided again with what is left by those before it in the line.
             The decode node of the prefill path: least next step + wait for its link + seconds of
             the prompt's KV on it. Pairs need no search of their own: a transfer ends with the
             later of its two links (docs/decisions/009).
    Formula: margin = 1 + (margin_max - 1)·clip((wait - w0)/(w1 - w0), 0, 1),
             w0 = 0.1 and w1 = 0.5 of the TTFT target; 1 when the prefill path meets the target
             with `slack_frac` of it to spare. Place in the line of held requests: arrival + TTFT
             target + work_weight·(seconds of prefill), smallest first: deadlines, with short
             prompts before long ones, and age that in the end outweighs both.
    Inputs:  ledger view (report + what was sent since), uncached tokens per node, link queue and
             rate, learned output lengths.
    Source:  this project; its parts are known ones: booking at dispatch (Sangam, Dynamo), chunks
             sized to slack (QoServe, DAAPC), the central queue (P/D-Serve, Sangam), and the test
             itself (arXiv 2607.02043).
    Cost:    O(prefill nodes + decode nodes), whatever the prompt. A cheap rank orders the nodes of
             either pool and only the first `plans_max` are estimated in full (only one while there
             is no pressure); nodes that the rank left out are not among the candidates.

    objective: what decode time is spent on. `balanced` deflects as above; `tail-ttft`
        whenever the decode path is sooner, were nobody waiting; `protect-tbt` only whom the
        prefill path would cost more than the TTFT target less `slack_frac` of it.
    deflections_max: prompts that may be deflected to one node at a time: a bound, not a knob. A low
        one leaves the node idle in an overload that both pools must work off (docs/decisions/005);
        1 is the printed rule's limit, that is, the ablation of the shared ledger.
    margin_max: how much slower the decode path may be while many wait (it frees the queue).
    slack_frac: share of the TTFT target to spare with which the margin stays 1.
    plans_max: nodes of either pool that are estimated in full.
    pressure: ablation; off deflects whenever the decode path wins, were the prefill pool idle.
    pressure_steps: the wait that counts as pressure, in full prefill steps.
    pressure_frac: share of the TTFT target within which the prefill path is quick enough, whoever
        waits there.
    slow_frac: share of the TTFT target beyond which a prompt is deflected where that is sooner,
        though nobody waits: long prompts, whose KV takes long to move; 0 is no such rule.
    transfer: ablation; off takes the KV transfer for free.
    links: ablation; off chooses the decode node of the prefill path by its batch alone, blind to
        the rate of its link and to the KV that is queued for it.
    prefix: ablation; off estimates as if no node held any of the prompt.
    kv_admission: ablation; off deflects to a node whatever its KV room.
    hold: ablation; off commits every request on arrival.
    feed_steps: backlog that a prefill node is kept at, in its full steps.
    feed_decode_steps: backlog of deflected work that a decode node is kept at, in steps of the
        target: more than one, so that the next prompt is there before the last step begins, and
        fills it.
    work_weight: by how many seconds of waiting a second of prefill puts a request back; 0 serves by
        deadline alone.
    """

    objective: str = "balanced"
    deflections_max: int = 256
    margin_max: float = 1.3
    slack_frac: float = 0.3
    plans_max: int = 4
    pressure: bool = True
    pressure_steps: float = 0.5
    pressure_frac: float = 0.15
    slow_frac: float = 0.25
    transfer: bool = True
    links: bool = True
    prefix: bool = True
    kv_admission: bool = True
    hold: bool = True
    feed_steps: float = 1.0
    feed_decode_steps: float = 1.5
    work_weight: float = 15.0
    name: str = "headroom"

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ConfigError(f"headroom: objective is {self.objective!r}; choose one of {known}")
        for option in _AT_LEAST_ZERO:
            value = getattr(self, option)
            if not (isfinite(value) and value >= 0):
                raise ConfigError(f"headroom: {option} must be a number >= 0")
        if self.deflections_max < 1 or self.plans_max < 1:
            raise ConfigError("headroom: deflections_max and plans_max must be at least 1")
        if not (isfinite(self.margin_max) and self.margin_max >= 1):
            raise ConfigError("headroom: margin_max must be a number >= 1")
        if not 0 <= self.slack_frac <= 1:
            raise ConfigError("headroom: slack_frac must be between 0 and 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        if self.prefix or not request.cached_tokens_by_node:
            return self._decide(request, cluster)
        blind = self._decide(request._replace(cached_tokens_by_node=()), cluster)
        return _really_planned(blind, request, cluster)

    def _decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        output_tokens = output_tokens_expected(request, cluster)
        decode = least_loaded_decode(request, cluster, links=self.links)
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        prefills = _by_start(request, cluster)
        if not prefills:
            return deflect_or_reject(request, cluster)
        side = decode_side(request, decode, output_tokens)
        remote = self._via(request, prefills[0][2], decode, cluster.now_s, side)
        pressure = self.pressure and self.objective != "tail-ttft"
        if pressure and self._is_calm(request, remote, cluster):
            return _keep([remote.candidate], remote, Reason.NO_PRESSURE)
        candidates = [remote.candidate]
        for _, _, node in prefills[1 : self.plans_max]:
            other = self._via(request, node, decode, cluster.now_s, side)
            candidates.append(other.candidate)
            if other.total_s < remote.total_s:
                remote = other
        if pressure and self._is_calm(request, remote, cluster):
            return _keep(candidates, remote, Reason.NO_PRESSURE)
        if self.objective == "protect-tbt" and self._is_in_time(request, remote, cluster.now_s):
            return self._keep_or_hold(candidates, remote, Reason.NO_PRESSURE, cluster)
        margin = self._margin(request, remote)
        best = self._soonest_local(request, cluster, output_tokens, candidates)
        if best is None:
            return self._keep_or_hold(candidates, remote, Reason.NO_SAFE_DECODE_NODE, cluster)
        local_s = best.estimate.total_s
        misses_target = local_s > request.slo.ttft_s and local_s > remote.total_s
        if local_s > margin * remote.total_s or misses_target:
            return self._keep_or_hold(candidates, remote, Reason.FASTER_ON_PREFILL, cluster)
        node_id = best.node.spec.node_id
        late_s = best.estimate.queue_s - self.feed_s(best.node)
        if late_s > 0 and self.hold and cluster.may_hold:
            return _hold(None, node_id, best.estimate, cluster.now_s + late_s)
        return Decision(
            Route.DEFLECTED,
            Reason.FASTER_ON_DECODE,
            None,
            node_id,
            best.estimate,
            best.plan,
            False,
            mark_chosen(candidates, None, node_id),
        )

    def _keep_or_hold(
        self, candidates: list[Candidate], remote: _Remote, reason: Reason, cluster: ClusterView
    ) -> Decision:
        """Return the decision for the prefill path: now, or held until that node is due."""
        late_s = remote.estimate.queue_s - self.feed_s(remote.node)
        if late_s > 0 and self.hold and cluster.may_hold:
            node_id = remote.node.spec.node_id
            return _hold(node_id, None, remote.estimate, cluster.now_s + late_s)
        return _keep(candidates, remote, reason)

    def _is_calm(self, request: RequestView, remote: _Remote, cluster: ClusterView) -> bool:
        """Return whether the prefill path has room, or is quick enough, so that it is kept."""
        now_s, target_s = cluster.now_s, request.slo.ttft_s
        first_token_s = remote.total_s
        if now_s > request.arrival_s:
            first_token_s += now_s - request.arrival_s
        if self.slow_frac and first_token_s > self.slow_frac * target_s:
            return False
        limit_s = self.pressure_steps * remote.node.spec.full_step_s
        if remote.wait_s <= limit_s / 2 or first_token_s <= self.pressure_frac * target_s:
            return True
        if remote.wait_s > limit_s:
            return False
        return not any(node.usable and node.backlog_until_s > now_s for node in cluster.prefill)

    def _is_in_time(self, request: RequestView, remote: _Remote, now_s: float) -> bool:
        """Return whether the prefill path meets the target with `slack_frac` of it to spare."""
        waited_s = max(0.0, now_s - request.arrival_s)
        return waited_s + remote.total_s <= (1 - self.slack_frac) * request.slo.ttft_s

    def hold_key(self, request: RequestView, cluster: ClusterView) -> float:
        # One node stands for all: what counts is the ratio between two prompts.
        node = (*cluster.prefill, *cluster.decode)[0]
        work_s = (
            node.spec.full_step_s
            / node.spec.step_tokens_max
            * request.uncached_tokens(node.node_id)
        )
        return request.arrival_s + request.slo.ttft_s + self.work_weight * work_s

    def feed_s(self, node: NodeView) -> float:
        if node.spec.role is Role.PREFILL:
            return self.feed_steps * node.spec.full_step_s
        limit_s = budget_s(node)
        return self.feed_decode_steps * (limit_s if limit_s < inf else node.spec.full_step_s)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster, links=self.links)
        return node.spec.node_id if node else None

    def _via(
        self,
        request: RequestView,
        prefill: NodeView,
        decode: NodeView,
        now_s: float,
        side: DecodeSide,
    ) -> _Remote:
        estimate = ttft_via_prefill(request, prefill, decode, now_s, side)
        if not self.transfer:
            estimate = estimate._replace(transfer_s=0.0)
        candidate = Candidate(prefill.spec.node_id, decode.spec.node_id, estimate, Reason.SLOWER)
        wait_s = estimate.queue_s + estimate.transfer_s + estimate.admission_s
        return _Remote(prefill, candidate, estimate, estimate.total_s, wait_s)

    def _margin(self, request: RequestView, remote: _Remote) -> float:
        target_s = request.slo.ttft_s
        if remote.total_s <= (1 - self.slack_frac) * target_s:
            return 1.0
        low_s, high_s = 0.1 * target_s, 0.5 * target_s
        pressure_frac = min(1.0, max(0.0, (remote.wait_s - low_s) / (high_s - low_s)))
        return 1.0 + (self.margin_max - 1.0) * pressure_frac

    def _soonest_local(
        self,
        request: RequestView,
        cluster: ClusterView,
        output_tokens: int,
        candidates: list[Candidate],
    ) -> _Local | None:
        """Return the safe decode node with the least TTFT; note every verdict in `candidates`."""
        eligible: list[tuple[float, NodeId, NodeView]] = []
        few = len(cluster.decode) <= self.plans_max
        now_s, cap = cluster.now_s, self.deflections_max
        for node in cluster.decode:
            veto = state_veto(node, cluster)
            if veto is None:
                if node.backlog_prompts >= cap:
                    veto = Reason.CAP_VETO
                elif self.kv_admission and kv_veto(request, node, output_tokens):
                    veto = Reason.KV_VETO
                else:
                    rank_s = 0.0 if few else _rank_s(request, node, now_s)
                    eligible.append((rank_s, node.spec.node_id, node))
                    continue
            candidates.append(Candidate(None, node.spec.node_id, None, veto))
        if not few:
            eligible.sort(key=_rank_of)
        best: _Local | None = None
        planned = 0
        for _, node_id, node in eligible:
            if best is not None and planned >= self.plans_max:
                break
            planned += 1
            plan = safe_plan(request, node)
            if plan is None:
                candidates.append(Candidate(None, node_id, None, Reason.TBT_VETO))
                continue
            estimate = ttft_via_decode(request, node, plan, now_s)
            candidates.append(Candidate(None, node_id, estimate, Reason.SLOWER))
            if best is None or estimate.total_s < best.estimate.total_s:
                best = _Local(node, plan, estimate)
        return best


def _by_start(request: RequestView, cluster: ClusterView) -> list[tuple[float, NodeId, NodeView]]:
    """Return the usable prefill nodes as (seconds, id, node), soonest first, by a cheap rank.

    The rank is when the backlog ends plus the prompt at the steepest slope of f, so that a faster
    node wins over an equally idle slower one.
    """
    now_s = cluster.now_s
    ranked = []
    for node in cluster.prefill:
        if node.usable:
            spec = node.spec
            work_s = request.uncached_tokens(spec.node_id) * spec.profile.hinge_slope_s[-1]
            ranked.append((max(node.backlog_until_s, now_s) + work_s, spec.node_id, node))
    if len(ranked) > 1:
        ranked.sort(key=_rank_of)
    return ranked


def _really_planned(decision: Decision, request: RequestView, cluster: ClusterView) -> Decision:
    """Return a decision made blind to prefixes, with the schedule that the node will run."""
    for node in cluster.decode:
        if decision.route is Route.DEFLECTED and node.spec.node_id == decision.decode_node_id:
            return decision._replace(plan=own_plan(request, node) or decision.plan)
    return decision


def _keep(candidates: list[Candidate], remote: _Remote, reason: Reason) -> Decision:
    """Return the decision for the prefill path."""
    prefill_id, decode_id = remote.candidate.prefill_node_id, remote.candidate.decode_node_id
    return Decision(
        Route.PREFILL,
        reason,
        prefill_id,
        decode_id,
        remote.estimate,
        candidates=mark_chosen(candidates, prefill_id, decode_id),
    )


def _hold(
    prefill_id: NodeId | None, decode_id: NodeId | None, estimate: TtftEstimate, until_s: float
) -> Decision:
    """Return the decision to wait for one node, which is due at `until_s`."""
    return Decision(
        Route.HELD,
        Reason.WORTH_WAITING,
        prefill_id,
        decode_id,
        estimate,
        hold_until_s=until_s,
    )


def _rank_of(one: tuple[float, NodeId, NodeView]) -> tuple[float, NodeId]:
    return one[0], one[1]


def _rank_s(request: RequestView, node: NodeView, now_s: float) -> float:
    """Return a cheap estimate of TTFT_dec that ranks nodes before any plan is made.

    Tokens flow at the rate at which the spare time of a step buys them at the steepest slope of f.
    """
    profile = node.spec.profile
    tokens = request.uncached_tokens(node.spec.node_id)
    queue_s = max(0.0, node.backlog_until_s - now_s)
    work_s = tokens * profile.hinge_slope_s[-1]
    limit_s = budget_s(node)
    if limit_s == inf:
        return queue_s + work_s
    spare_s = limit_s - step_s(profile, node.decode_seqs, node.kv_used_tokens)
    return queue_s + work_s * limit_s / spare_s if spare_s > 0 else inf
