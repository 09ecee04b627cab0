"""A deflection is the node's to grant: it alone knows what every router has sent there.

A router decides on its own books and the node's last report; what another router sent since is in
neither. So an order to deflect says what it was decided on, as the most prefill work that may be
ahead of the prompt, and where several routers share a node it is asked before anything is sent
(docs/decisions/011). What a node has granted counts as its work until the request arrives.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from spillway.core.types import NodeView, RequestView

# What may be ahead of a prompt beyond what its router knew, as a share of its own work: the lengths
# of text prompts are estimates.
SLACK_FRAC = 0.25
# One request is declined at most so often; then it goes where the policy, which by now has the
# node's own word, sends it.
DECLINED_MAX = 2
# A granted request that has not come by then is not going to; its router may have died.
GRANTED_S_MAX = 2.0
GRANTS_MAX = 1024
UNLIMITED = -1


class Verdict(StrEnum):
    """What a node says to a deflection."""

    GRANTED = "granted"
    BACKLOG = "backlog"  # more prefill work is ahead of it than its router knew
    KV = "kv"  # the prompt would not fit beside what is there and what is promised
    OVER_BUDGET = "over_budget"  # the decodes alone exceed their target
    BUSY = "busy"  # too many are granted and have not come


def backlog_tokens_max(request: RequestView, node: NodeView) -> int:
    """Return the most prefill tokens that may be ahead of a prompt on the node chosen for it."""
    tokens = request.uncached_tokens(node.spec.node_id)
    return node.backlog_tokens + int(SLACK_FRAC * tokens)


class Ask(NamedTuple):
    """A router's question: may this prompt come?

    tokens, pairs: its prefill work, as `Entry` books it.  backlog_tokens_max: see above.
    """

    router_id: str
    dispatch_id: int
    tokens: int
    pairs: float
    backlog_tokens_max: int


class NodeLoad(NamedTuple):
    """How the node stands, granted work not included. kv_capacity_tokens: 0 when not known."""

    backlog_tokens: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    over_budget: bool


def judge(ask: Ask, load: NodeLoad, granted_tokens: int = 0) -> Verdict:
    """Return whether a node so loaded takes the prompt. O(1)."""
    ahead_tokens = load.backlog_tokens + granted_tokens
    if load.over_budget:
        return Verdict.OVER_BUDGET
    if ahead_tokens > ask.backlog_tokens_max:
        return Verdict.BACKLOG
    capacity = load.kv_capacity_tokens
    if capacity and load.kv_used_tokens + ahead_tokens + ask.tokens > capacity:
        return Verdict.KV
    return Verdict.GRANTED


class Grants:
    """What a node has granted and not yet received: part of its backlog until then.

    prompts, tokens, pairs: their sums.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], tuple[float, Ask]] = {}
        self.tokens = 0
        self.pairs = 0.0

    @property
    def prompts(self) -> int:
        return len(self._open)

    def decide(self, ask: Ask, load: NodeLoad, now_s: float) -> Verdict:
        """Return the answer to `ask`; what is granted is remembered. O(expired)."""
        self.expire(now_s)
        key = ask.router_id, ask.dispatch_id
        if key in self._open:  # asked twice: the first answer may have been lost
            return Verdict.GRANTED
        if len(self._open) >= GRANTS_MAX:
            return Verdict.BUSY
        verdict = judge(ask, load, self.tokens)
        if verdict is Verdict.GRANTED:
            self._open[key] = now_s + GRANTED_S_MAX, ask
            self.tokens += ask.tokens
            self.pairs += ask.pairs
        return verdict

    def arrived(self, router_id: str, dispatch_id: int) -> None:
        """The request is here, and counted for itself from now on. Strangers are ignored."""
        self._drop((router_id, dispatch_id))

    def expire(self, now_s: float) -> None:
        """Forget what should have come by now."""
        while self._open:
            key = next(iter(self._open))  # the oldest: all have the same time
            if self._open[key][0] > now_s:
                break
            self._drop(key)

    def seen(self) -> dict[str, int]:
        """Return the highest granted dispatch id of each router."""
        highest: dict[str, int] = {}
        for router_id, dispatch_id in self._open:
            highest[router_id] = max(dispatch_id, highest.get(router_id, 0))
        return highest

    def _drop(self, key: tuple[str, int]) -> None:
        found = self._open.pop(key, None)
        if found is not None:
            self.tokens -= found[1].tokens
            self.pairs -= found[1].pairs
        if not self._open:
            self.pairs = 0.0  # sums of floats drift
