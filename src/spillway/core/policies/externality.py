"""The causal-externality rule: place a request where the value it destroys in others is least."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, exp

from spillway.core.decide import Decision, Reason
from spillway.core.errors import ConfigError
from spillway.core.latency import step_s
from spillway.core.placement import output_tokens_expected
from spillway.core.policies.joint import Placement, decide_by
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class Externality:
    """Causal externality: least value lost by others, less the value the request itself gets.

    Rule:    argmin of J = E - G over every (prefill, decode) pair and every deflection; of equals
             the soonest.
    Formula: g(ttft, e2e) = s((t - ttft)/t)·s((D - e2e)/D), s the logistic function, t the TTFT
             target, D = t + output·TBT target. G: g of the request's own projection. E: the sum,
             over the decode node's streams, of g without the request less g with it. A stream with
             `rem` steps left loses, if deflected, the plan's work beyond plain steps as far as it
             overlaps, then T(B+1, KV+prompt) - T(B, KV) for each step left; else that difference
             for each step left once the KV has joined. A stream that ends before loses nothing.
    Inputs:  backlog, link, batch and KV of every node; the residents' strictest TBT target; learned
             output lengths; the request's targets.
    Source:  the INFOCOM 2027 study of causal SLO externalities, as its public protocols and code
             describe it; J is unscaled, which changes no argmin.
    Differs: the study reads each resident's age; here all streams of a node count as half-way
             through an answer of the learned length, with the node's strictest target. Prompts
             ahead of the request lose nothing, since queues are first in, first out. D stands for
             the end-to-end target, which requests here do not have.

    own: count G; off places by harm alone.
    residents: count E; off places by the request's own value alone.
    nodes_max: nodes of each pool that are looked at in full.
    """

    own: bool = True
    residents: bool = True
    nodes_max: int = 8
    name: str = "externality"

    def __post_init__(self) -> None:
        if not (self.own or self.residents):
            raise ConfigError("externality: own and residents cannot both be false")
        if self.nodes_max < 1:
            raise ConfigError("externality: nodes_max must be at least 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        output_tokens = output_tokens_expected(request, cluster)
        return decide_by(
            request,
            cluster,
            self.nodes_max,
            lambda one: self._cost(request, one, output_tokens),
            Reason.BEST_SCORE,
        )

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        output_tokens = output_tokens_expected(request, cluster)
        node = min(
            (node for node in cluster.decode if node.usable),
            key=lambda node: self._cost_at(request, node, output_tokens, 0.0, 0.0, 0),
            default=None,
        )
        return node.spec.node_id if node else None

    def _cost(self, request: RequestView, one: Placement, output_tokens: int) -> float:
        estimate, plan = one.estimate, one.plan
        if plan is None:
            joins_s = estimate.total_s - estimate.first_step_s
            return self._cost_at(request, one.decode, output_tokens, joins_s, 0.0, 0)
        node = one.decode
        plain_s = step_s(node.spec.profile, node.decode_seqs, node.kv_used_tokens)
        extra_s = max(0.0, plan.execute_s - plan.steps * plain_s)
        starts_s = estimate.total_s - estimate.execute_s
        return self._cost_at(
            request, node, output_tokens, starts_s, extra_s, plan.steps, estimate.total_s
        )

    def _cost_at(
        self,
        request: RequestView,
        node: NodeView,
        output_tokens: int,
        joins_s: float,
        extra_s: float,
        extra_steps: int,
        ttft_s: float | None = None,
    ) -> float:
        """Return J when the request starts on `node` after joins_s, with extra_s over extra_steps.

        ttft_s: None when the next step there yields the first token.
        """
        before_s = step_s(node.spec.profile, node.decode_seqs, node.kv_used_tokens)
        after_s = step_s(
            node.spec.profile, node.decode_seqs + 1, node.kv_used_tokens + request.prompt_tokens
        )
        cost = 0.0
        if self.residents and node.decode_seqs and before_s > 0:
            left = max(1, output_tokens // 2)
            left -= min(left, ceil(joins_s / before_s))
            shared = min(left, extra_steps)
            delay_s = (left - shared) * (after_s - before_s)
            if extra_steps:
                delay_s += extra_s * shared / extra_steps
            cost += node.decode_seqs * _value_lost(request, node, output_tokens, before_s, delay_s)
        if self.own:
            if ttft_s is None:
                ttft_s = joins_s + after_s
            target_s = request.slo.ttft_s
            whole_s = target_s + output_tokens * request.slo.tbt_s
            finish_s = ttft_s + output_tokens * after_s
            cost -= _smooth((target_s - ttft_s) / target_s) * _smooth(
                (whole_s - finish_s) / whole_s
            )
        return cost


def _value_lost(
    request: RequestView, node: NodeView, output_tokens: int, step_now_s: float, delay_s: float
) -> float:
    """Return what a typical stream of `node` loses when its end comes `delay_s` later."""
    tbt_s = min(node.tbt_s_min, request.slo.tbt_s)
    target_s = request.slo.ttft_s
    whole_s = target_s + output_tokens * tbt_s
    finish_s = target_s / 2 + output_tokens * step_now_s
    on_time = _smooth(0.5)  # its first token is taken to have come at half the target
    return on_time * (
        _smooth((whole_s - finish_s) / whole_s) - _smooth((whole_s - finish_s - delay_s) / whole_s)
    )


def _smooth(slack_frac: float) -> float:
    """Return the logistic function, without overflow however late something is."""
    if slack_frac >= 0.0:
        return 1.0 / (1.0 + exp(-slack_frac))
    grown = exp(slack_frac)  # keeps late and very late apart where 1 - 1/(1 + ...) would not
    return grown / (1.0 + grown)
