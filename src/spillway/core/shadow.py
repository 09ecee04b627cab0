"""Shadow mode: one policy routes, another one only says what it would have done.

A policy that decides with a second one looking on is again a policy, so neither the dispatcher nor
its drivers know of it. The ledger books what was really done, since only that ever leaves here.
"""

from __future__ import annotations

from dataclasses import replace

from spillway.core.decide import Decision, HoldingPolicy, Policy, Route, ShadowDecision
from spillway.core.placement import fall_back
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


class Shadowed:
    """`policy`, with what `shadow` would have done noted beside each of its decisions.

    Both are asked about the same request and the same view. The shadow is asked when the request is
    committed to a node, and may not hold it: it answers for that moment. An error of the shadow
    touches nothing; its decision is then the fall-back's, with the reason `policy_failed`.
    Cost: that of a second decision.
    """

    def __init__(self, policy: Policy, shadow: Policy, shadow_name: str = "") -> None:
        self.policy = policy
        self.shadow = shadow
        self.shadow_name = shadow_name or shadow.name

    @property
    def name(self) -> str:
        """Return the name of the policy that routes."""
        return self.policy.name

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        """Return the decision of the policy that routes, the shadow's beside it."""
        decision = self.policy.decide(request, cluster)
        if decision.route is Route.HELD:
            return decision
        now = replace(cluster, may_hold=False) if cluster.may_hold else cluster
        return decision._replace(shadow=ShadowDecision(self.shadow_name, self._watch(request, now)))

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        """Return the decode node that the policy that routes picks."""
        return self.policy.pick_decode(request, cluster)

    def _watch(self, request: RequestView, cluster: ClusterView) -> Decision:
        try:
            return self.shadow.decide(request, cluster)
        except Exception:  # noqa: BLE001 - a bug in a shadow must not touch the request
            return fall_back(request, cluster)


class ShadowedHolding(Shadowed):
    """The same around a policy that holds requests back."""

    policy: HoldingPolicy

    def hold_key(self, request: RequestView, cluster: ClusterView) -> float:
        """Return the place in the line that the policy that routes gives the request."""
        return self.policy.hold_key(request, cluster)

    def feed_s(self, node: NodeView) -> float:
        """Return the backlog below which the policy that routes gives the node more work."""
        return self.policy.feed_s(node)


def with_shadow(policy: Policy, shadow: Policy | None, shadow_name: str = "") -> Policy:
    """Return `policy` with `shadow` looking on; `policy` itself when there is none."""
    if shadow is None:
        return policy
    kind = ShadowedHolding if isinstance(policy, HoldingPolicy) else Shadowed
    return kind(policy, shadow, shadow_name)


def routing_policy(policy: Policy) -> Policy:
    """Return the policy that routes, without whatever looks on."""
    return policy.policy if isinstance(policy, Shadowed) else policy
