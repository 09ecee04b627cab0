"""The rule of arXiv 2607.02043 (Kairos) as printed, with a switch for everything not known of it.

Neither the paper's text nor its code was at hand: formulas follow the two independent public ports
of the printed rule, and each point on which they or the paper are silent is an option here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from spillway.core.chunks import ChunkPlan, plan_from_sizes
from spillway.core.decide import Candidate, Decision, Reason, Route, TtftEstimate
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s, tokens_s
from spillway.core.placement import (
    deflect_or_reject,
    least_loaded_decode,
    mark_chosen,
    safe_plan,
    state_veto,
)
from spillway.core.types import ChunkMode, ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class KairosPaper:
    """Deflect to the best feasible decode node iff it beats alpha x the prefill estimate.

    Rule:    deflect iff TTFT_dec <= alpha·TTFT_pf and TTFT_dec <= the request's TTFT target.
             Feasible: no deflected prefill pending on the node, and a chunk schedule whose every
             step is predicted at most beta x the strictest resident's TBT target.
    Formula: TTFT_pf = (sum l / chi)·T_p(chi, sum l / 2) + sum_i T_p(chi_i, done_i); no transfer, no
             admission, no prefix. TTFT_dec = sum of the schedule's steps. T: this project's step
             law, since the paper's form is unknown.
    Inputs:  prompt tokens ahead per prefill node; batch, KV, strictest target and "a deflected
             prompt is pending" per decode node.
    Source:  arXiv 2607.02043 Eq. 1-2, Algorithm 1 and section 4.4, as read by the ports.
    Differs: on what the paper leaves open: the prefill node of least estimate, as the ports; the
             decode node of other requests is the least loaded one.

    alpha: how much slower the decode path may be; 1.3 is the paper's setting.
    beta: share of the strictest target that a step may fill; unknown, the ports use 1.0.
    sizes_tokens: candidate chunks, descending.
    clamp_chunk: chi = min(node budget, prompt), as ported; off takes the budget alone.
    exclusive: at most one deflected prompt per decode node, until a report clears it.
    literal: the node executes the schedule as it is; off lets it size each step to its residents,
        and takes that for the schedule (beta and sizes_tokens are then not used). Stock engines
        follow none, so that there it is always off.
    """

    alpha: float = 1.3
    beta: float = 1.0
    sizes_tokens: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    clamp_chunk: bool = True
    exclusive: bool = True
    literal: bool = True
    name: str = "kairos-paper"

    def __post_init__(self) -> None:
        if not (isfinite(self.alpha) and self.alpha >= 1):
            raise ConfigError("kairos-paper: alpha must be a number >= 1")
        if not (isfinite(self.beta) and self.beta > 0):
            raise ConfigError("kairos-paper: beta must be a number > 0")
        sizes = self.sizes_tokens
        if not sizes or list(sizes) != sorted(set(sizes), reverse=True) or sizes[-1] < 1:
            raise ConfigError("kairos-paper: sizes_tokens must descend and be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        candidates: list[Candidate] = []
        prefill, remote = self._best_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode_id = self.pick_decode(request, cluster)
        candidates.append(Candidate(prefill.spec.node_id, decode_id, remote, Reason.SLOWER))
        best: tuple[float, NodeView, ChunkPlan, TtftEstimate] | None = None
        for node in cluster.decode:
            node_id = node.spec.node_id
            plan, veto = self._plan(request, node, cluster)
            if plan is None:
                candidates.append(Candidate(None, node_id, None, veto))
                continue
            estimate = TtftEstimate(execute_s=plan.execute_s)
            candidates.append(Candidate(None, node_id, estimate, Reason.SLOWER))
            if best is None or plan.execute_s < best[0]:
                best = (plan.execute_s, node, plan, estimate)
        reason = Reason.NO_SAFE_DECODE_NODE
        if best is not None:
            total_s, node, plan, estimate = best
            if total_s > request.slo.ttft_s:
                reason = Reason.TTFT_VETO
            elif total_s > self.alpha * remote.total_s:
                reason = Reason.FASTER_ON_PREFILL
            else:
                node_id = node.spec.node_id
                return Decision(
                    Route.DEFLECTED,
                    Reason.FASTER_ON_DECODE,
                    None,
                    node_id,
                    estimate,
                    plan,
                    self._is_literal(node),
                    mark_chosen(candidates, None, node_id),
                )
        if decode_id is None:
            return Decision(Route.REJECTED, Reason.NO_NODE, candidates=tuple(candidates))
        chosen = mark_chosen(candidates, prefill.spec.node_id, decode_id)
        return Decision(
            Route.PREFILL, reason, prefill.spec.node_id, decode_id, remote, candidates=chosen
        )

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)  # the paper does not say; ours
        return node.spec.node_id if node else None

    def _best_prefill(
        self, request: RequestView, cluster: ClusterView
    ) -> tuple[NodeView | None, TtftEstimate]:
        """Return the usable prefill node with the least printed estimate, the ports' choice."""
        best: NodeView | None = None
        best_estimate = TtftEstimate()
        for node in cluster.prefill:
            if not node.usable:
                continue
            estimate = self._printed_estimate(request, node)
            if best is None or estimate.total_s < best_estimate.total_s:
                best, best_estimate = node, estimate
        return best, best_estimate

    def _printed_estimate(self, request: RequestView, node: NodeView) -> TtftEstimate:
        spec = node.spec
        profile, prompt = spec.profile, request.prompt_tokens
        chunk = min(spec.step_tokens_max, prompt) if self.clamp_chunk else spec.step_tokens_max
        ahead = node.backlog_tokens
        wait_s = ahead / chunk * step_s(profile, 0, 0, chunk, ahead // 2) if ahead > 0 else 0.0
        full_steps, rest = divmod(prompt, chunk)
        execute_s = full_steps * (profile.step_base_s + tokens_s(profile, chunk))
        if rest:
            execute_s += profile.step_base_s + tokens_s(profile, rest)
        execute_s += profile.token_pair_s * prompt * (prompt + 1) / 2
        return TtftEstimate(queue_s=wait_s, execute_s=execute_s)

    def _is_literal(self, node: NodeView) -> bool:
        """A stock engine follows no schedule; there, its own setting has to be safe."""
        return self.literal and node.spec.chunk_mode is not ChunkMode.STATIC

    def _plan(
        self, request: RequestView, node: NodeView, cluster: ClusterView
    ) -> tuple[ChunkPlan | None, Reason]:
        veto = state_veto(node, cluster)
        if veto is not None:
            return None, veto
        if self.exclusive and node.backlog_prompts:
            return None, Reason.CAP_VETO
        if not self._is_literal(node):
            return safe_plan(request, node), Reason.TBT_VETO
        # The strictest resident is protected; the arriving class only on an empty node.
        target_s = node.tbt_s_min if node.decode_seqs else request.slo.tbt_s
        plan = plan_from_sizes(
            node.spec.profile,
            node.decode_seqs,
            node.kv_used_tokens,
            request.prompt_tokens,
            self.beta * target_s,
            self.sizes_tokens,
        )
        return plan, Reason.TBT_VETO
