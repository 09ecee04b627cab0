"""NVIDIA Dynamo: conditional disaggregation on top of the KV-aware router's cost.

Three rules that differ in one predicate. All of them price nodes in KV blocks, skip the prefill
pool when the predicate holds, and can be kept from a decode node whose KV is too full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import isfinite

from spillway.core.decide import Candidate, Decision, Reason, Route
from spillway.core.errors import ConfigError
from spillway.core.placement import deflect_or_reject, deflect_unguarded, to_prefill
from spillway.core.types import ClusterView, NodeId, NodeView, RequestView


@dataclass(frozen=True, slots=True)
class _KvRouter:
    """The router that all three share: where a prompt would go on either path, by cost in blocks.

    block_tokens: tokens per KV block.
    seq_blocks: the price of a request under way, in blocks.
    decode_busy_frac: no deflection to a node whose KV would be fuller than this; 0 is off.
    """

    block_tokens: int = 64
    seq_blocks: float = 0.0
    decode_busy_frac: float = 0.0

    def __post_init__(self) -> None:
        if self.block_tokens < 1:
            raise ConfigError("dynamo: block_tokens must be at least 1")
        if not (isfinite(self.seq_blocks) and self.seq_blocks >= 0):
            raise ConfigError("dynamo: seq_blocks must be a number >= 0")
        if not 0 <= self.decode_busy_frac <= 1:
            raise ConfigError("dynamo: decode_busy_frac must be between 0 (off) and 1")

    def decide(self, request: RequestView, cluster: ClusterView) -> Decision:
        prefill = _cheapest(cluster.prefill, lambda node: self._prompt_blocks(request, node))
        if prefill is None:
            return deflect_or_reject(request, cluster)
        decode = _cheapest(cluster.decode, lambda node: self._whole_blocks(request, node))
        if decode is None:
            return Decision(Route.REJECTED, Reason.NO_NODE)
        remote = to_prefill(request, cluster, prefill, decode, Reason.NO_PRESSURE)
        reason = self._reason(request, prefill, decode)
        if reason is None:
            return remote
        if self._too_full(request, decode):
            vetoed = Candidate(None, decode.spec.node_id, None, Reason.KV_VETO)
            return remote._replace(
                reason=Reason.NO_SAFE_DECODE_NODE, candidates=(*remote.candidates, vetoed)
            )
        return deflect_unguarded(request, cluster, remote, decode, reason)

    def pick_decode(self, request: RequestView, cluster: ClusterView) -> NodeId | None:
        node = _cheapest(cluster.decode, lambda node: self._decode_blocks(request, node))
        return node.spec.node_id if node else None

    def _reason(self, request: RequestView, prefill: NodeView, decode: NodeView) -> Reason | None:
        """Return why the prefill pool is to be skipped, None when it is not."""
        raise NotImplementedError

    def _prompt_blocks(self, request: RequestView, node: NodeView) -> float:
        tokens = node.backlog_tokens + request.uncached_tokens(node.spec.node_id)
        return -(-tokens // self.block_tokens)

    def _decode_blocks(self, request: RequestView, node: NodeView) -> float:
        tokens = node.kv_used_tokens + request.prompt_tokens
        return -(-tokens // self.block_tokens) + self.seq_blocks * node.decode_seqs

    def _whole_blocks(self, request: RequestView, node: NodeView) -> float:
        """The cost of running prompt and decode on `node`: what it holds of the prompt is free."""
        return self._prompt_blocks(request, node) + self._decode_blocks(request, node)

    def _too_full(self, request: RequestView, node: NodeView) -> bool:
        if not self.decode_busy_frac:
            return False
        need = node.kv_used_tokens + request.prompt_tokens
        # An unknown capacity is 0, so that it vetoes.
        return need > self.decode_busy_frac * node.kv_capacity_tokens


@dataclass(frozen=True, slots=True)
class DynamoIslBounding(_KvRouter):
    """Dynamo `isl_bounding`: run short uncached prompts on the decode node that holds the rest.

    Rule:    d = argmin over decode nodes of prefill blocks - held blocks + decode blocks. Skip the
             prefill pool iff uncached(d) < isl_tokens_max and uncached(d) / prompt < isl_frac_max.
             Else p = argmin of prefill blocks - held blocks; the decode node is chosen again, by
             decode blocks alone, when the prefill is done.
    Inputs:  prefix tokens held per node; prefill backlog and KV in use of every node.
    Source:  NVIDIA Dynamo 1.5, `--router-conditional-disagg`, default policy; defaults as shipped.
    Differs: temperature 0; no host or disk tier. What nodes hold is known from what was sent to
             them (`core.prefixes`), as with Dynamo's approximate mode, not from the engines' KV
             events. Decode nodes size their chunks themselves where they can; Dynamo's run the
             engine's fixed setting.

    isl_tokens_max: uncached tokens from which on a prompt goes to the prefill pool.
    isl_frac_max: the same as a share of the prompt, so that an unknown prompt always goes there.
    block_tokens: tokens per KV block.
    seq_blocks: the price of a request under way, in blocks.
    decode_busy_frac: no deflection to a node whose KV would be fuller than this; 0 is off.
    """

    isl_tokens_max: int = 2048
    isl_frac_max: float = 0.7
    name: str = "dynamo-isl-bounding"

    def __post_init__(self) -> None:
        _KvRouter.__post_init__(self)
        _check_isl(self.name, self.isl_tokens_max, self.isl_frac_max)

    def _reason(self, request: RequestView, prefill: NodeView, decode: NodeView) -> Reason | None:
        short = _is_short(request, decode, self.isl_tokens_max, self.isl_frac_max)
        return Reason.SHORT_PROMPT if short else None


@dataclass(frozen=True, slots=True)
class DynamoPrefillLoad(_KvRouter):
    """Dynamo `prefill_load`: skip the prefill pool while the node it would use is busy.

    Rule:    p and d as in dynamo-isl-bounding. Skip the prefill pool iff
             backlog(p) > busy_factor x the tokens of one full step.
    Inputs:  prefix tokens held per node; prefill backlog and KV in use of every node.
    Source:  NVIDIA Dynamo 1.5, `--router-conditional-disagg`. The factor has no default of its own
             there; it takes that of `--router-queue-threshold`: 2, 4 or 16, by version.
    Differs: as dynamo-isl-bounding.

    busy_factor: full steps of backlog above which a prefill node counts as busy.
    block_tokens: tokens per KV block.
    seq_blocks: the price of a request under way, in blocks.
    decode_busy_frac: no deflection to a node whose KV would be fuller than this; 0 is off.
    """

    busy_factor: float = 4.0
    name: str = "dynamo-prefill-load"

    def __post_init__(self) -> None:
        _KvRouter.__post_init__(self)
        _check_busy(self.name, self.busy_factor)

    def _reason(self, request: RequestView, prefill: NodeView, decode: NodeView) -> Reason | None:
        return Reason.PREFILL_BUSY if _is_busy(prefill, self.busy_factor) else None


@dataclass(frozen=True, slots=True)
class DynamoIslOrLoad(_KvRouter):
    """Dynamo `isl_or_load`: skip the prefill pool for short uncached prompts, or while it is busy.

    Rule:    p and d as in dynamo-isl-bounding; skip the prefill pool iff the predicate of either
             dynamo-prefill-load or dynamo-isl-bounding holds.
    Inputs:  prefix tokens held per node; prefill backlog and KV in use of every node.
    Source:  NVIDIA Dynamo 1.5, `--router-conditional-disagg`.
    Differs: as dynamo-isl-bounding.

    isl_tokens_max: uncached tokens from which on a prompt goes to a prefill pool that is not busy.
    isl_frac_max: the same as a share of the prompt.
    busy_factor: full steps of backlog above which a prefill node counts as busy.
    block_tokens: tokens per KV block.
    seq_blocks: the price of a request under way, in blocks.
    decode_busy_frac: no deflection to a node whose KV would be fuller than this; 0 is off.
    """

    isl_tokens_max: int = 2048
    isl_frac_max: float = 0.7
    busy_factor: float = 4.0
    name: str = "dynamo-isl-or-load"

    def __post_init__(self) -> None:
        _KvRouter.__post_init__(self)
        _check_isl(self.name, self.isl_tokens_max, self.isl_frac_max)
        _check_busy(self.name, self.busy_factor)

    def _reason(self, request: RequestView, prefill: NodeView, decode: NodeView) -> Reason | None:
        if _is_busy(prefill, self.busy_factor):
            return Reason.PREFILL_BUSY
        short = _is_short(request, decode, self.isl_tokens_max, self.isl_frac_max)
        return Reason.SHORT_PROMPT if short else None


def _is_short(
    request: RequestView, decode: NodeView, isl_tokens_max: int, isl_frac_max: float
) -> bool:
    tokens = request.uncached_tokens(decode.spec.node_id)
    return tokens < isl_tokens_max and tokens < isl_frac_max * request.prompt_tokens


def _is_busy(prefill: NodeView, busy_factor: float) -> bool:
    return prefill.backlog_tokens > busy_factor * prefill.spec.step_tokens_max


def _check_isl(name: str, isl_tokens_max: int, isl_frac_max: float) -> None:
    if isl_tokens_max < 0:
        raise ConfigError(f"{name}: isl_tokens_max must be >= 0")
    if not (isfinite(isl_frac_max) and isl_frac_max >= 0):
        raise ConfigError(f"{name}: isl_frac_max must be a number >= 0")


def _check_busy(name: str, busy_factor: float) -> None:
    if not (isfinite(busy_factor) and busy_factor >= 0):
        raise ConfigError(f"{name}: busy_factor must be a number >= 0")


def _cheapest(nodes: Iterable[NodeView], cost: Callable[[NodeView], float]) -> NodeView | None:
    """Return the usable node of least cost, the first of equals."""
    return min((node for node in nodes if node.usable), key=cost, default=None)
