"""PPD: let the decode node that holds a conversation prefill what the next turn appends."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from spillway.core.chunks import ChunkPlan
from spillway.core.decide import Decision, Reason, Route, TtftEstimate
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.placement import (
    deflect_or_reject,
    deflect_unguarded,
    deflection_veto,
    least_loaded_decode,
    output_tokens_expected,
    own_plan,
    soonest_prefill,
    to_prefill,
)
from spillway.core.ttft import ttft_via_decode
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class Ppd:
    """PPD's append-prefill: later turns run where their context is, if that pays.

    Rule:    d = the decode node that holds most of the prompt. A prompt that none holds any of is a
             first turn and uses the prefill pool. A later turn of fewer than append_tokens_max
             uncached tokens runs on d. A longer one does iff
             ttft_factor·gain - tbt_factor·harm > 0, else it uses the prefill pool.
    Formula: gain = (TTFT_pf - TTFT_dec) / TTFT_pf; harm = (plan - steps·T_d) / (output·T_d): the
             time that the prompt adds to d's streams, over that of a whole answer.
    Inputs:  prefix tokens held per node; backlog, batch and KV of every node; learned output
             lengths.
    Source:  PPD (arXiv 2603.13358) and its public code; 512 tokens and weights 1, 1 are its own.
    Differs: PPD looks gain and harm up in tables measured per deployment, by context class, shape
             and request rate; here the latency profile and the live state predict them. A later
             turn is one of which a decode node holds something by `core.prefixes`.

    append_tokens_max: uncached tokens below which a later turn always runs on d.
    ttft_factor: weight of the gain.
    tbt_factor: weight of the harm.
    """

    append_tokens_max: int = 512
    ttft_factor: float = 1.0
    tbt_factor: float = 1.0
    name: str = "ppd"

    def __post_init__(self) -> None:
        if self.append_tokens_max < 0:
            raise ConfigError("ppd: append_tokens_max must be >= 0")
        for factor in (self.ttft_factor, self.tbt_factor):
            if not (isfinite(factor) and factor >= 0):
                raise ConfigError("ppd: ttft_factor and tbt_factor must be numbers >= 0")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = soonest_prefill(request, cluster)
        if prefill is None:
            return deflect_or_reject(request, cluster)
        remote = to_prefill(
            request, cluster, prefill, least_loaded_decode(request, cluster), Reason.NO_PRESSURE
        )
        holder = _holder(request, cluster)
        if holder is None or remote.route is Route.REJECTED:
            return remote
        if request.uncached_tokens(holder.spec.node_id) < self.append_tokens_max:
            return deflect_unguarded(request, cluster, remote, holder, Reason.SHORT_PROMPT)
        plan = own_plan(request, holder)
        pays = (
            plan is not None
            and deflection_veto(request, cluster, holder) is None
            and self._pays(request, cluster, holder, plan, remote.estimate)
        )
        if not pays:
            return remote._replace(reason=Reason.FASTER_ON_PREFILL)
        return deflect_unguarded(request, cluster, remote, holder, Reason.BEST_SCORE)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = least_loaded_decode(request, cluster)
        return node.spec.node_id if node else None

    def _pays(
        self,
        request: RequestView,
        cluster: ClusterView,
        holder: NodeView,
        plan: ChunkPlan,
        remote: TtftEstimate,
    ) -> bool:
        remote_s = remote.total_s
        local_s = ttft_via_decode(request, holder, plan, cluster.now_s).total_s
        gain = (remote_s - local_s) / remote_s if remote_s > 0 else 0.0
        if not holder.decode_seqs:
            return self.ttft_factor * gain > 0  # nobody to harm
        plain_s = step_s(holder.spec.profile, holder.decode_seqs, holder.kv_used_tokens)
        answer_s = max(1, output_tokens_expected(request, cluster)) * plain_s
        harm = (plan.execute_s - plan.steps * plain_s) / answer_s
        return self.ttft_factor * gain - self.tbt_factor * harm > 0


def _holder(request: RequestView, cluster: ClusterView) -> NodeView | None:
    """Return the usable decode node that holds most of the prompt, None when none holds any."""
    held = dict(request.cached_tokens_by_node)
    holders = [node for node in cluster.decode if node.usable and held.get(node.spec.node_id)]
    return max(holders, key=lambda node: held[node.spec.node_id], default=None)
